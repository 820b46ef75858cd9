//! `tercet card`: the public identity of a node, as the others put it in their files.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::json;
use tercet_net::{Identity, PeerAddress};

use crate::screen::{say, say_json};

/// Print the public half of a key, ready for the others' files.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The key file.
    #[arg(default_value = "tercet.key")]
    key: PathBuf,
    /// Which party this node is: p0, p1 or p2.
    #[arg(long, value_name = "PARTY")]
    party: Option<String>,
    /// Where the others reach it, like quic://10.0.0.2:7411; a client needs none.
    #[arg(long, value_name = "ADDRESS")]
    address: Option<PeerAddress>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let key = Identity::load(&args.key)?.public_key();
    if let Some(party) = &args.party
        && !["p0", "p1", "p2"].contains(&party.as_str())
    {
        bail!("no party {party}; write p0 (helper), p1 or p2 (evaluators)");
    }
    if args.json {
        return say_json(&json!({ "key": key, "party": args.party, "address": args.address }));
    }
    if args.party.is_none() && args.address.is_none() {
        say(key);
        return Ok(());
    }
    if let Some(party) = args.party {
        say(format_args!("[peers.{party}]"));
    }
    say(format_args!("key = \"{key}\""));
    if let Some(address) = args.address {
        say(format_args!("address = \"{address}\""));
    }
    Ok(())
}
