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
