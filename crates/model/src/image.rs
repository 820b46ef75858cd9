//! Pixels to normalised patches.

use crate::graph::Input;

/// Why an image cannot be given to a model. The caller is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The model takes texts.
    #[error("the model takes texts, not images")]
    NotForImages,
    /// The image has another number of values than the model takes.
    #[error("the image has {found} values; the model takes {channels} channels of {side} x {side} pixels")]
    WrongSize {
        /// Values given.
        found: usize,
        /// Channels of the model.
        channels: usize,
        /// Side in pixels.
        side: usize,
    },
    /// A pixel is not a number in [0, 1].
    #[error("pixel [{channel}, {row}, {column}] is not a number from 0 to 1")]
    NotAPixel {
        /// Its channel.
        channel: usize,
        /// Its row.
        row: usize,
        /// Its column.
        column: usize,
    },
}

impl Input {
    /// Cuts an image into normalised patches. `pixels` are `[channels, side, side]` row-major, in [0, 1]; the result is
    /// `[patches, channels * patch * patch]`, patches row by row, and within one channels, then rows, then columns.
    ///
    /// # Errors
    /// The model takes texts, the number of pixels is another, or a pixel is not in [0, 1].
    pub fn patches(&self, pixels: &[f32]) -> Result<Vec<f32>, ImageError> {
        let Self::Patches { channels, image_size: side, patch_size: patch, mean, std } = self else {
            return Err(ImageError::NotForImages);
        };
        let (channels, side, patch) = (*channels, *side, *patch);
        if pixels.len() != channels * side * side {
            return Err(ImageError::WrongSize { found: pixels.len(), channels, side });
        }
        if let Some(at) = pixels.iter().position(|v| !(0.0..=1.0).contains(v)) {
            let (channel, row, column) = (at / (side * side), at / side % side, at % side);
            return Err(ImageError::NotAPixel { channel, row, column });
        }
        let mut patches = Vec::with_capacity(pixels.len());
        for top in (0..side).step_by(patch) {
            for left in (0..side).step_by(patch) {
                for channel in 0..channels {
                    for row in top..top + patch {
                        let start = (channel * side + row) * side + left;
                        let line = &pixels[start..start + patch];
                        patches.extend(line.iter().map(|v| (v - mean[channel]) / std[channel]));
                    }
                }
            }
        }
        Ok(patches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input() -> Input {
        Input::Patches { channels: 2, image_size: 4, patch_size: 2, mean: vec![0.0, 0.5], std: vec![1.0, 0.25] }
    }

    #[test]
    fn patches_run_over_channels_then_rows_then_columns() {
        let pixels: Vec<f32> = (0..32).map(|i| i as f32 / 32.0).collect();
        let patches = input().patches(&pixels).unwrap();
        let at = |channel: usize, row: usize, column: usize| {
            let pixel = pixels[(channel * 4 + row) * 4 + column];
            if channel == 0 { pixel } else { (pixel - 0.5) / 0.25 }
        };
        // The third patch is the lower left one.
        let third =
            [at(0, 2, 0), at(0, 2, 1), at(0, 3, 0), at(0, 3, 1), at(1, 2, 0), at(1, 2, 1), at(1, 3, 0), at(1, 3, 1)];
        assert_eq!(&patches[16..24], &third);
        assert_eq!(patches.len(), 32);
    }

    #[test]
    fn refuses_what_is_not_an_image_of_the_model() {
        assert!(matches!(input().patches(&[0.0; 31]), Err(ImageError::WrongSize { found: 31, channels: 2, side: 4 })));
        for bad in [f32::NAN, -0.1, 1.1, f32::INFINITY] {
            let mut pixels = [0.5; 32];
            pixels[16 + 4 + 3] = bad;
            assert_eq!(input().patches(&pixels), Err(ImageError::NotAPixel { channel: 1, row: 1, column: 3 }));
        }
        let text = Input::Tokens { vocab: 1, max_tokens: 1 };
        assert_eq!(text.patches(&[]), Err(ImageError::NotForImages));
    }
}
