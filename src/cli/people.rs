//! How many people are simulated: what `dataset simulate` and `eval` have in common.

use anyhow::bail;
use clap::Args;
use sidereal::dataset::SimulationOptions;

/// All of them are in memory at once.
const MOST_PEOPLE: usize = 100_000_000;

/// Options of simulated people.
#[derive(Args)]
pub struct PeopleArgs {
    /// Simulated people to learn from
    #[arg(long, value_name = "N", default_value_t = SimulationOptions::default().users)]
    users: usize,
    /// Simulated people to be judged by
    #[arg(long, value_name = "N", default_value_t = SimulationOptions::default().held_out)]
    held_out: usize,
}

impl PeopleArgs {
    /// Who is simulated with a seed, the rest being as it is by default.
    ///
    /// # Errors
    /// If there are too many.
    pub fn simulation(&self, seed: u64) -> anyhow::Result<SimulationOptions> {
        let (users, held_out) = (self.users, self.held_out);
        if users.checked_add(held_out).is_none_or(|people| people > MOST_PEOPLE) {
            bail!("--users and --held-out: more than {MOST_PEOPLE} people");
        }
        Ok(SimulationOptions { users, held_out, seed, ..SimulationOptions::default() })
    }
}
