//! The 8x8 handwritten digits, and the small ViT trained on them by `train_digits`.
//!
//! The images are the test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI Machine
//! Learning Repository, CC BY 4.0): see `examples/digits/README.md`. Both the data and the model are embedded, so a
//! program that uses them needs no network and no path.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use flate2::read::GzDecoder;

/// Pixels on a side.
pub const SIDE: usize = 8;
/// Pixels of an image.
pub const PIXELS: usize = SIDE * SIDE;
/// Images in the set.
pub const COUNT: usize = 1797;
/// Every fifth image, from the fifth on, is for testing (359 of them), the others (1438) for training: fixed, and spread
/// evenly over the set.
const TEST_EVERY: usize = 5;

/// Strokes are counted from 0 to this in the data, and divided by it in [`Digit::pixels`].
const FULL_INK: f32 = 16.0;

const DATA: &[u8] = include_bytes!("../digits/digits.csv.gz");

/// The trained model, a Hugging Face `ViTForImageClassification` directory: file names and contents.
pub const MODEL: [(&str, &[u8]); 3] = [
    ("config.json", include_bytes!("../digits/model/config.json")),
    ("model.safetensors", include_bytes!("../digits/model/model.safetensors")),
    ("preprocessor_config.json", include_bytes!("../digits/model/preprocessor_config.json")),
];

/// One image and what its writer meant.
#[derive(Clone, Debug, PartialEq)]
pub struct Digit {
    /// Ink in [0, 1], row by row from the top left.
    pub pixels: [f32; PIXELS],
    /// 0 to 9.
    pub label: u8,
}

/// All [`COUNT`] digits, in the order of the data set.
pub fn load() -> Vec<Digit> {
    let mut text = String::with_capacity(1 << 18);
    GzDecoder::new(DATA).read_to_string(&mut text).expect("the embedded digits unpack");
    text.lines().map(parse).collect()
}

/// The digits for training.
pub fn train_split() -> Vec<Digit> {
    split(false)
}

/// The digits that the model has not seen.
pub fn test_split() -> Vec<Digit> {
    split(true)
}

fn split(test: bool) -> Vec<Digit> {
    let numbered = load().into_iter().enumerate();
    numbered.filter(|(i, _)| (i % TEST_EVERY == TEST_EVERY - 1) == test).map(|(_, digit)| digit).collect()
}

/// One line of the embedded table: 64 counts from 0 to 16, then the label.
fn parse(line: &str) -> Digit {
    let mut fields = line.split(',').map(|field| field.parse::<u8>().expect("the embedded digits are whole numbers"));
    let mut pixels = [0.0; PIXELS];
    for pixel in &mut pixels {
        *pixel = f32::from(fields.next().expect("64 pixels a line")) / FULL_INK;
    }
    Digit { pixels, label: fields.next().expect("a label after the pixels") }
}

/// Writes the trained model into `dir` (made if it is not there), as Hugging Face lays it out.
///
/// # Errors
/// The file system's own.
pub fn write_model(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    for (name, bytes) in MODEL {
        fs::write(dir.join(name), bytes)?;
    }
    Ok(())
}

/// A digit in block characters: 8 lines of 16 columns.
pub fn draw(digit: &Digit) -> String {
    draw_row(std::slice::from_ref(digit))
}

/// Digits side by side: 8 lines, 16 columns a digit and two between; each line ends with a newline.
pub fn draw_row(digits: &[Digit]) -> String {
    let mut out = String::new();
    for row in 0..SIDE {
        for (place, digit) in digits.iter().enumerate() {
            if place > 0 {
                out.push_str("  ");
            }
            for &ink in &digit.pixels[row * SIDE..][..SIDE] {
                let block = shade(ink);
                out.extend([block, block]);
            }
        }
        out.push('\n');
    }
    out
}

fn shade(ink: f32) -> char {
    const SHADES: [char; 5] = [' ', '░', '▒', '▓', '█'];
    // A NaN casts to 0, a pixel out of range is clamped: a picture never fails.
    SHADES[((ink * 5.0) as usize).min(4)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_is_whole() {
        let all = load();
        assert_eq!(all.len(), COUNT);
        assert!(all.iter().all(|d| d.label < 10 && d.pixels.iter().all(|p| (0.0..=1.0).contains(p))));
        // Counts per label as the data set's own description gives them.
        let mut counts = [0; 10];
        all.iter().for_each(|d| counts[usize::from(d.label)] += 1);
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
    }

    #[test]
    fn splits_share_nothing_and_cover_all() {
        let (train, test, all) = (train_split(), test_split(), load());
        assert_eq!((train.len(), test.len()), (1438, 359));
        let (mut train, mut test) = (train.into_iter(), test.into_iter());
        for (i, digit) in all.into_iter().enumerate() {
            assert_eq!(if i % 5 == 4 { test.next() } else { train.next() }, Some(digit));
        }
    }

    #[test]
    fn first_digit_is_drawn_as_a_zero() {
        let drawn = draw(&load()[0]);
        let lines: Vec<&str> = drawn.lines().collect();
        assert_eq!(lines.len(), SIDE);
        assert!(lines.iter().all(|line| line.chars().count() == 2 * SIDE));
        assert_eq!(lines[3], "  ░░▓▓    ▒▒▒▒  ");
        let row = draw_row(&load()[..3]);
        assert!(row.lines().all(|line| line.chars().count() == 3 * 16 + 2 * 2));
    }
}
