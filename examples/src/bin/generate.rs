//! A private text through the SDK, token by token, as a program of your own would ask for it.
//!
//! ```text
//! tercet demo --generate "Elizabeth was" --keep stage     # writes an example of all files
//! tercet node --config stage/p0/node.toml     # the nodes of the demonstration end with it: start all three again,
//! tercet node --config stage/p1/node.toml     # each in a terminal of its own
//! tercet node --config stage/p2/node.toml
//! generate stage/nodes.toml gpt "Elizabeth was"
//! ```

use std::io::Write;
use std::path::Path;

use anyhow::{Result, bail};
use tercet_client::{Error, Fault, GenerateOptions, Sampling};

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [file, model, prompt] = args.as_slice() else { bail!("usage: generate NODES.toml MODEL PROMPT") };
    let client = tercet_examples::nodes::client(Path::new(file)).await?;

    let sampling = Sampling { temperature: 0.7, top_p: 0.95, ..Sampling::GREEDY };
    let options = GenerateOptions { max_new_tokens: 48, sampling, stop: vec!["\n\n".into()], ..Default::default() };
    let mut text = client.generate(model, prompt, &options).await?;
    print!("{prompt}");
    // Dropped before its end, as by a `break` here, it frees what the nodes keep for it.
    while let Some(token) = text.next().await {
        match token {
            Ok(token) => print!("{}", token.text),
            // Errors say whose fault they are.
            Err(Error::Refused { party, fault: Fault::Busy, reason }) => bail!("{party} is busy: {reason}"),
            Err(other) => return Err(other.into()),
        }
        std::io::stdout().flush()?;
    }
    let usage = text.usage();
    println!("\n{} tokens, {} rounds, {} bytes between the nodes", usage.new_tokens, usage.rounds, usage.total_bytes());
    client.close().await;
    Ok(())
}
