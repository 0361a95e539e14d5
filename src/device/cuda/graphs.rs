//! Recorded steps, by what they look like.

use std::collections::HashMap;

use super::driver::{Driver, Graph};
use super::run::StepShape;
use crate::error::Result;

/// Steps of one shape that are enqueued one launch at a time before a graph is made of them.
const SIGHTS: u32 = 2;
/// Shapes remembered at most. Where no more fit, those that were only seen make room; where all are graphs, new shapes are enqueued launch
/// by launch.
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
        match self.entries.get_mut(shape) {
            Some(Entry::Recorded(graph)) => Way::Replay(*graph),
            Some(Entry::Seen(sights)) if *sights + 1 >= SIGHTS => Way::Record,
            Some(Entry::Seen(sights)) => {
                *sights += 1;
                Way::Launch
            }
            None => {
                self.meet(shape);
                Way::Launch
            }
        }
    }

    /// Remembers a new shape.
    fn meet(&mut self, shape: &StepShape) {
        if self.entries.len() >= MOST {
            // What comes once, such as prompts of odd lengths, would otherwise keep out what comes all the time.
            self.entries.retain(|_, entry| matches!(entry, Entry::Recorded(_)));
        }
        if self.entries.len() < MOST {
            self.entries.insert(shape.clone(), Entry::Seen(1));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// One step of `rows` rows, recorded if it is to be; the graph that is replayed.
    fn step(graphs: &mut Graphs, rows: usize) -> Option<Graph> {
        let shape = StepShape { rows, ..StepShape::default() };
        match graphs.way(&shape) {
            Way::Launch => None,
            Way::Record => {
                graphs.entries.insert(shape, Entry::Recorded(Graph(rows as u32)));
                None
            }
            Way::Replay(graph) => Some(graph),
        }
    }

    #[test]
    fn a_shape_that_returns_becomes_a_graph_however_many_came_once() {
        let mut graphs = Graphs::default();
        for old in 0..2 * SIGHTS {
            assert_eq!(step(&mut graphs, (old % 2) as usize), None);
        }
        for once in 0..10 * MOST {
            assert_eq!(step(&mut graphs, 1000 + once), None);
            assert!(graphs.entries.len() <= MOST);
        }
        for _ in 0..SIGHTS {
            assert_eq!(step(&mut graphs, 2), None);
        }
        // What was recorded before the others came is still there.
        for rows in 0..3 {
            assert_eq!(step(&mut graphs, rows), Some(Graph(rows as u32)));
        }
    }

    #[test]
    fn graphs_make_no_room() {
        let mut graphs = Graphs::default();
        for rows in 0..MOST {
            (0..SIGHTS).for_each(|_| assert_eq!(step(&mut graphs, rows), None));
        }
        for _ in 0..3 {
            assert_eq!(step(&mut graphs, MOST), None);
        }
        assert!((0..MOST).all(|rows| step(&mut graphs, rows) == Some(Graph(rows as u32))));
    }
}
