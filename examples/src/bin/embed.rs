//! Private embeddings through the SDK, as a program of your own would ask for them.
//!
//! ```text
//! tercet demo --model minilm --keep stage     # writes an example of all files
//! tercet node --config stage/p0/node.toml     # the nodes of the demonstration end with it: start all three again,
//! tercet node --config stage/p1/node.toml     # each in a terminal of its own
//! tercet node --config stage/p2/node.toml
//! embed stage/nodes.toml minilm "first text" "second text"
//! ```

use std::path::Path;

use anyhow::{Result, bail};
use tercet_client::{Error, Fault, Options};

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [file, model, texts @ ..] = args.as_slice() else { bail!("usage: embed NODES.toml MODEL TEXT…") };
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();

    // One client serves any number of requests, also side by side; it finds nodes again that were away.
    let client = tercet_examples::nodes::client(Path::new(file)).await?;
    // Round lengths up to multiples of 16 tokens: the nodes learn no more than that.
    let options = Options { bucket: Some(16), ..Options::default() };
    match client.embed(model, &texts, &options).await {
        Ok(found) => {
            for (text, vector) in texts.iter().zip(&found.vectors) {
                println!("{text:?}: {:.4?} … ({} numbers)", &vector[..4.min(vector.len())], vector.len());
            }
            for used in &found.usage {
                println!("{} rounds, {} bytes between the nodes", used.rounds, used.total_bytes());
            }
        }
        // Errors say whose fault they are.
        Err(Error::Input { index, what }) => eprintln!("text {} cannot be embedded: {what}", index + 1),
        Err(Error::Disagreement { parties, what }) => eprintln!("do not trust {parties:?}: they disagree on {what}"),
        Err(Error::Refused { party, fault: Fault::Busy, .. }) => eprintln!("{party} is busy: try again later"),
        Err(other) => return Err(other.into()),
    }
    client.close().await;
    Ok(())
}
