//! Recorded steps, by what they look like.

use std::collections::HashMap;

use super::driver::{Driver, Graph};
use super::run::StepShape;
use crate::error::Result;

/// Steps of one shape that are enqueued one launch at a time before a graph is made of them.
const SIGHTS: u32 = 2;
/// Graphs at most; the one that has not been used for longest makes room.
const MOST: usize = 256;
/// Shapes without a graph that are remembered at most; where no more fit, all are forgotten. What comes once, such as prompts of odd lengths, does
/// not keep out what comes all the time.
const MOST_SEEN: usize = 256;

/// The graphs of a device.
#[derive(Default)]
pub(super) struct Graphs {
    /// Graphs, and the step that used each last.
    recorded: HashMap<StepShape, (Graph, u64)>,
    /// How often shapes without a graph have come.
    seen: HashMap<StepShape, u32>,
    /// Steps so far.
    steps: u64,
    /// Graphs that nobody will ask for any more.
    dropped: Vec<Graph>,
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
        self.steps += 1;
        if let Some((graph, used)) = self.recorded.get_mut(shape) {
            *used = self.steps;
            return Way::Replay(*graph);
        }
        if let Some(sights) = self.seen.get_mut(shape) {
            *sights += 1;
            return if *sights >= SIGHTS { Way::Record } else { Way::Launch };
        }
        if self.seen.len() >= MOST_SEEN {
            self.seen.clear();
        }
        self.seen.insert(shape.clone(), 1);
        Way::Launch
    }

    /// Keeps the recording of a shape.
    pub fn keep(&mut self, shape: &StepShape, graph: Graph) {
        self.seen.remove(shape);
        let oldest = self.recorded.iter().min_by_key(|(_, (_, used))| *used);
        if self.recorded.len() >= MOST
            && let Some(oldest) = oldest.map(|(shape, _)| shape.clone())
        {
            self.dropped.extend(self.recorded.remove(&oldest).map(|(graph, _)| graph));
        }
        self.recorded.insert(shape.clone(), (graph, self.steps));
    }

    /// Forgets everything: an address that graphs have frozen has changed.
    pub fn clear(&mut self) {
        self.seen.clear();
        self.dropped.extend(self.recorded.drain().map(|(_, (graph, _))| graph));
    }

    /// Frees what was dropped.
    ///
    /// # Errors
    /// The driver's.
    pub fn free_dropped(&mut self, driver: &mut dyn Driver) -> Result<()> {
        while let Some(graph) = self.dropped.pop() {
            driver.forget(graph)?;
        }
        Ok(())
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
                graphs.keep(&shape, Graph(rows as u32));
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
            assert!(graphs.seen.len() <= MOST_SEEN);
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
    fn the_graph_that_was_not_used_for_longest_makes_room() {
        let mut graphs = Graphs::default();
        for rows in 0..MOST {
            (0..SIGHTS).for_each(|_| assert_eq!(step(&mut graphs, rows), None));
        }
        // What comes once makes nothing go.
        for once in 0..2 * MOST_SEEN {
            assert_eq!(step(&mut graphs, 1000 + once), None);
        }
        assert!(graphs.dropped.is_empty());
        // Two that take turns become graphs, in the places of the two that waited for longest.
        assert_eq!(step(&mut graphs, 0), Some(Graph(0)));
        for _ in 0..SIGHTS {
            assert_eq!((step(&mut graphs, MOST), step(&mut graphs, MOST + 1)), (None, None));
        }
        assert_eq!(graphs.dropped, [Graph(1), Graph(2)]);
        for rows in (0..MOST + 2).filter(|rows| ![1, 2].contains(rows)) {
            assert_eq!(step(&mut graphs, rows), Some(Graph(rows as u32)));
        }
        graphs.clear();
        assert_eq!(graphs.dropped.len(), 2 + MOST);
    }
}
