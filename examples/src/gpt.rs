//! The small GPT-2 that `train_gpt` trained on novels by Jane Austen, and prompts that it continues.
//!
//! What it was trained on, for how long and how well it does: `examples/gpt/README.md`. The model is embedded, so a program
//! that uses it needs no network and no path.

use std::fs;
use std::io;
use std::path::Path;

/// The trained model, a Hugging Face `GPT2LMHeadModel` directory: file names and contents.
pub const MODEL: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("../gpt/model/config.json")),
    ("generation_config.json", include_bytes!("../gpt/model/generation_config.json")),
    ("model.safetensors", include_bytes!("../gpt/model/model.safetensors")),
    ("tokenizer.json", include_bytes!("../gpt/model/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../gpt/model/tokenizer_config.json")),
];

/// Beginnings of sentences that none of the novels holds, for demonstrations.
pub const PROMPTS: [&str; 3] =
    ["The letter which he held in his hand was", "Elizabeth had always wished to", "\"My dear sister,\" said Elinor,"];

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
