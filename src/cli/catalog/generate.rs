//! `sidereal catalog generate`.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::bail;
use clap::Args;
use sidereal::catalog::TypeSpec;
use sidereal::catalog::synthetic::{self, Skew};

/// Make a synthetic catalog.
#[derive(Args)]
#[command(after_help = "Examples:
  sidereal catalog generate --items 10000000 --levels 8192,8192,8192 --skew zipf:1.0 --out ten-million.sidcat
  sidereal catalog generate --items 50000 --levels 256,256,256,256 --attributes --out small.sidcat")]
pub struct Generate {
    /// Items, each with a SID of its own
    #[arg(long, value_name = "N")]
    items: usize,
    /// Codes of each level
    #[arg(long, value_name = "K,K,…", value_delimiter = ',', required = true)]
    levels: Vec<usize>,
    /// How codes are distributed: uniform, or zipf:EXPONENT
    #[arg(long, value_name = "KIND", default_value = "uniform")]
    skew: Skew,
    /// Key of all random draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Name of the one type
    #[arg(long = "type", value_name = "NAME", default_value = "item")]
    item_type: String,
    /// Also years, prices, genres, languages and whether an item is fresh
    #[arg(long)]
    attributes: bool,
    /// The snapshot file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Generate {
    /// Runs the command.
    pub fn run(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        if self.items == 0 {
            bail!("--items 0: a catalog has at least one");
        }
        if self.item_type.is_empty() {
            bail!("--type: a type's name must not be empty");
        }
        let token = format!("<{}_{{level}}_{{code}}>", self.item_type);
        let types = [TypeSpec { name: self.item_type.clone(), levels: self.levels.clone(), token }];
        let catalog = match self.attributes {
            true => synthetic::catalog_with_attributes(&types, self.items, self.skew, self.seed)?,
            false => synthetic::catalog(&types, self.items, self.skew, self.seed)?,
        };
        super::save(&catalog, &self.out, start)
    }
}
