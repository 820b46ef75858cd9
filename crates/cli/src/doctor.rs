//! `tercet doctor`
use anyhow::Result;
/// Check.
#[derive(clap::Args)]
pub(crate) struct Args {}
pub(crate) fn run(_: Args) -> Result<()> {
    Ok(())
}
