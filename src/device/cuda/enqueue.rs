//! The launches of a step, operation by operation.

use super::attention::AttentionCall;
use super::driver::DevicePtr;
use super::embed::EmbedCall;
use super::norm::NormCall;
use super::plan::Section;
use super::products::{Epilogue, Norm, Product};
use super::rope::RopeCall;
use super::run::{CudaDevice, StepShape};
use super::sample::SampleCall;
use super::sid::SidCall;
use super::step::Group;
use crate::error::{Error, Result};

fn present(at: DevicePtr) -> Option<DevicePtr> {
    (at != DevicePtr::NULL).then_some(at)
}

impl CudaDevice {
    /// `x = E[token]`.
    pub(super) fn enqueue_embed(&mut self, s: &StepShape) -> Result<()> {
        let call = EmbedCall {
            table: self.weights.embed,
            rows: self.plan.at(Section::Rows),
            row_segment: self.plan.at(Section::RowSegment),
            segments: self.plan.at(Section::Segments),
            soft: self.plan.at(Section::Soft),
            counts: self.plan.at(Section::Counts),
            x: self.buffers.x.ptr(),
            hidden: self.shape.hidden,
            vocab: self.shape.vocab,
            soft_tokens: s.layout.capacity(Section::Soft) / self.shape.hidden,
            max_rows: s.layout.capacity(Section::Rows).min(self.sizes.rows),
            max_segments: s.layout.capacity(Section::Segments),
            bucket: s.rows,
        };
        self.embed.enqueue(&mut *self.driver, &call)
    }

    /// A product over all rows of the step.
    fn product(&self) -> Product<'_> {
        Product {
            x: &self.buffers.x,
            norm: None,
            w: &self.weights.head,
            bias: None,
            epilogue: Epilogue::Store,
            out: DevicePtr::NULL,
            ld_out: 0,
            group: self.group(Group::All),
            bucket: 0,
            max_out: self.sizes.rows,
        }
    }
}
