//! Recorded steps, by what they look like.

use std::collections::HashMap;

use super::driver::{Driver, Graph};
use super::run::StepShape;
use crate::error::Result;

/// Steps of one shape that are enqueued one launch at a time before a graph is made of them.
const SIGHTS: u32 = 2;
/// Graphs kept at most; beyond, new shapes are enqueued launch by launch.
const MOST: usize = 256;

enum Entry {
    Seen(u32),
    Recorded(Graph),
}

/// The graphs of a device.
#[derive(Default)]
pub(super) struct Graphs {
    entries: HashMap<StepShape, Entry>,
}

/// How a step is to be enqueued.
pub(super) enum Way {
    /// Launch by launch.
    Launch,
    /// Launch by launch, and recorded.
    Record,
    /// As a graph.
    Replay(Graph),
}

impl Graphs {
    /// How a step of this shape is to be enqueued.
    pub fn way(&mut self, shape: &StepShape) -> Way {
        let room = self.entries.len() < MOST;
        match self.entries.get_mut(shape) {
            Some(Entry::Recorded(graph)) => Way::Replay(*graph),
            Some(Entry::Seen(sights)) if *sights + 1 >= SIGHTS => Way::Record,
            Some(Entry::Seen(sights)) => {
                *sights += 1;
                Way::Launch
            }
            None if room => {
                self.entries.insert(shape.clone(), Entry::Seen(1));
                Way::Launch
            }
            None => Way::Launch,
        }
    }

    /// Keeps the recording of a shape and enqueues it.
    ///
    /// # Errors
    /// The driver's.
    pub fn keep(&mut self, driver: &mut dyn Driver, shape: &StepShape, graph: Graph) -> Result<()> {
        self.entries.insert(shape.clone(), Entry::Recorded(graph));
        driver.replay(graph)
    }

    /// Forgets everything: an address that graphs have frozen has changed.
    pub fn clear(&mut self) {
        self.entries.clear();
    }
}
