//! What a step looks at and does not change, and the nodes that it extends.

use super::beside::Beside;
use super::input::StepLogits;
use super::scan::{Class, Parent, Rules};
use super::{Entry, Rivals};
use crate::catalog::{Mask, Node, TypeIndex};
use crate::device::ops::SearchSpec;
use crate::device::random::{Noise, search_domain};

/// What a step looks at and does not change.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    pub spec: &'a SearchSpec,
    pub classes: &'a [u32],
    pub rivals: &'a Rivals,
    pub logits: StepLogits<'a>,
    pub level: usize,
    pub group: usize,
}

impl<'a> Step<'a> {
    fn trie(&self, place: usize) -> &'a TypeIndex {
        self.spec.catalog.index(self.spec.types[place].0)
    }

    fn rules(&self, place: usize) -> Rules<'a> {
        let mask: &Mask = &self.spec.types[place].1;
        let uses = self.rivals.uses.get(place).filter(|_| self.group > 0);
        Rules {
            mask: (!mask.is_all()).then_some(mask),
            taken: &self.rivals.taken[place],
            uses: uses.map(|uses| (&uses[..], self.spec.group_penalty)),
        }
    }

    /// What the delta has of a node; `None` if it has no children there.
    fn beside(&self, place: usize, node: impl FnOnce(&TypeIndex) -> Node) -> Option<Beside<'a>> {
        let delta = self.spec.delta.as_ref()?;
        let index = delta.catalog.index(self.spec.types[place].0);
        let node = node(index);
        let mask: &Mask = &delta.masks[place];
        (node.first < node.end).then(|| Beside {
            index,
            node,
            mask: (!mask.is_all()).then_some(mask),
            offset: self.trie(place).sids() as u32,
        })
    }

    /// The root of a requested type.
    pub fn root(&self, place: usize, norm: f32) -> Parent<'a> {
        let index = self.trie(place);
        Parent {
            index,
            level: 0,
            node: index.root(),
            beside: self.beside(place, TypeIndex::root),
            logits: self.logits.slice(place, index.codebook(0)),
            score: 0.0,
            norm,
            place,
            class: Class::First(self.classes[place]),
            rules: self.rules(place),
        }
    }

    /// A live path at a place of its list.
    pub fn live(&self, at: usize, entry: &Entry, norm: f32) -> Parent<'a> {
        let place = entry.place as usize;
        let index = self.trie(place);
        Parent {
            index,
            level: self.level,
            node: entry.node,
            beside: self.beside(place, |_| entry.beside),
            logits: self.logits.slice(entry.row as usize, index.codebook(self.level)),
            score: entry.score,
            norm,
            place: at,
            class: Class::Parent(entry.class),
            rules: self.rules(place),
        }
    }

    pub fn noise(&self, place: usize) -> Noise {
        let (seed, draw) = self.spec.sampling.map_or((0, 0), |s| (s.seed, s.draw));
        Noise::new(seed, draw, search_domain(self.spec.types[place].0.0, self.level, self.group))
    }
}
