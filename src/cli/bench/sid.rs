//! `sidereal bench sid`: one step of a beam search over a synthetic catalog, level by level.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde::Serialize;
use sidereal::catalog::synthetic::{self, Skew};
use sidereal::catalog::{Catalog, Mask, TypeSpec};
use sidereal::ids::TypeId;

use super::median;
use super::walk::{self, Walks};
use crate::cli::load::progress;

/// Steps before the first that is counted.
const WARM: usize = 8;
/// What is aimed at: microseconds of a step whose nodes have fewer than so many children on average, nanoseconds per child elsewhere.
const NARROW_US: f64 = 15.0;
const NARROW: f64 = 8.0;
const NS_PER_CHILD: f64 = 1.0;

/// One step of a beam search on one thread of the CPU, logits and normalisers given, from ancestors of random items.
#[derive(Args)]
pub struct SidBench {
    /// Items of the synthetic catalog
    #[arg(long, value_name = "N", default_value_t = 10_000_000)]
    items: usize,
    /// Codebooks
    #[arg(long, value_name = "K,K,K", value_delimiter = ',', default_value = "8192,8192,8192")]
    levels: Vec<usize>,
    /// How codes are distributed: uniform, or zipf:EXPONENT at every level
    #[arg(long, value_name = "SKEW", default_value = "uniform")]
    skew: Skew,
    /// Share of the items that a filter passes, each for itself; 1: no filter
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    filter_share: f64,
    /// Nodes of a step, and beams of the list it chooses
    #[arg(long, value_name = "N", default_value_t = 70)]
    rows: usize,
    /// Repetitions; medians are printed
    #[arg(long, value_name = "N", default_value_t = 101)]
    repeat: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Figures of a catalog; times in microseconds.
#[derive(Serialize)]
struct Figures {
    items: usize,
    levels: Vec<usize>,
    skew: String,
    filter_share: f64,
    index_bytes_per_item: f64,
    steps: Vec<Step>,
}

/// Figures of a level.
#[derive(Serialize)]
struct Step {
    level: usize,
    rows: f64,
    /// Of all rows together.
    children: f64,
    us: f64,
    ns_per_child: f64,
    aim_us: f64,
    /// Reading the rows' logits and nothing else.
    read_us: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    filtered_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filtered_ratio: Option<f64>,
}

impl SidBench {
    pub fn run(&self) -> anyhow::Result<()> {
        if self.items == 0 || self.repeat == 0 || !(1..=1024).contains(&self.rows) {
            bail!("--items and --repeat must be at least 1, --rows from 1 to 1024");
        }
        if !(self.filter_share > 0.0 && self.filter_share <= 1.0) {
            bail!("--filter-share {}, expected a share above 0 and up to 1", self.filter_share);
        }
        let bar = progress("building the catalog");
        let token = "<s_{level}_{code}>".into();
        let spec = TypeSpec { name: "item".into(), levels: self.levels.clone(), token };
        let catalog = Arc::new(synthetic::catalog(&[spec], self.items, self.skew, 7)?);
        let index = catalog.index(TypeId(0));
        let filter = (self.filter_share < 1.0).then(|| Arc::new(walk::share(index, self.filter_share)));
        if filter.as_ref().is_some_and(|filter| filter.count(0..index.sids() as u32) == 0) {
            bail!("--filter-share {} leaves none of {} items", self.filter_share, self.items);
        }
        bar.set_message("measuring");
        bar.set_length(self.levels.len() as u64);
        let steps = (0..self.levels.len()).map(|level| {
            let step = self.step(&catalog, filter.as_ref(), level);
            bar.inc(1);
            step
        });
        let figures = Figures {
            items: self.items,
            levels: self.levels.clone(),
            skew: match self.skew {
                Skew::Uniform => "uniform".to_owned(),
                Skew::Zipf(exponent) => format!("zipf:{exponent}"),
            },
            filter_share: self.filter_share,
            index_bytes_per_item: index.bytes() as f64 / self.items as f64,
            steps: steps.collect(),
        };
        bar.finish_and_clear();
        self.print(&figures)
    }

    /// Steps with and without the filter and plain reads in turns, so that drifts of the machine meet all alike.
    fn step(&self, catalog: &Arc<Catalog>, filter: Option<&Arc<Mask>>, level: usize) -> Step {
        let all = Arc::new(Mask::all(catalog.index(TypeId(0))));
        let mut walks = Walks::new(catalog, filter.unwrap_or(&all), level, self.rows);
        let (mut plain, mut filtered, mut read) = (Vec::new(), Vec::new(), Vec::new());
        for at in 0..WARM + self.repeat {
            let us = |time: Duration| time.as_secs_f64() * 1e6;
            // Other nodes and other logits each time: what the step before has read is not at hand.
            plain.push(us(walks.step(3 * at, &all, self.rows)));
            read.push(us(walks.read(3 * at + 1)));
            if let Some(filter) = filter {
                filtered.push(us(walks.step(3 * at + 2, filter, self.rows)));
            }
        }
        let us = median(&plain[WARM..]);
        let filtered_us = filter.map(|_| median(&filtered[WARM..]));
        let (rows, children) = (walks.rows(), walks.children());
        Step {
            level,
            rows,
            children,
            us,
            ns_per_child: us * 1e3 / children,
            aim_us: if children < NARROW * rows { NARROW_US } else { children * NS_PER_CHILD * 1e-3 },
            read_us: median(&read[WARM..]),
            filtered_us,
            filtered_ratio: filtered_us.map(|filtered| filtered / us),
        }
    }

    fn print(&self, figures: &Figures) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string(figures)?);
            return Ok(());
        }
        println!(
            "{} items, levels {:?}, {}, {:.1} bytes of index per item; {} beams, one thread",
            figures.items, figures.levels, figures.skew, figures.index_bytes_per_item, self.rows
        );
        println!(
            "{:>5} {:>5} {:>9} {:>9} {:>9} {:>9} {:>9} {:>12} {:>6}",
            "level", "nodes", "children", "us", "aim us", "ns/child", "read us", "filtered us", "ratio"
        );
        for step in &figures.steps {
            print!(
                "{:>5} {:>5.0} {:>9.0} {:>9.1} {:>9.1} {:>9.2} {:>9.1}",
                step.level, step.rows, step.children, step.us, step.aim_us, step.ns_per_child, step.read_us
            );
            match (step.filtered_us, step.filtered_ratio) {
                (Some(us), Some(ratio)) => println!(" {us:>12.1} {ratio:>6.2}"),
                _ => println!(),
            }
        }
        Ok(())
    }
}
