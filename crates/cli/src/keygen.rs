//! `tercet keygen`: a fresh identity for a node or a client.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::json;
use tercet_net::{Identity, IdentityError};

use crate::screen::{note, say, say_json};

/// Make a key for a node or a client and print its public half.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The key file to write; an existing one is never overwritten.
    #[arg(long, value_name = "FILE", default_value = "tercet.key")]
    out: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let identity = Identity::generate()?;
    match identity.save(&args.out) {
        Err(IdentityError::File { path, source }) if source.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{} exists already; choose another file with --out, or remove it", path.display())
        }
        saved => saved?,
    }
    let key = identity.public_key();
    if args.json {
        return say_json(&json!({ "file": args.out, "key": key }));
    }
    say(key);
    note(format_args!(
        "wrote {}, readable by you alone; `tercet card` prints what the others need",
        args.out.display()
    ));
    Ok(())
}
