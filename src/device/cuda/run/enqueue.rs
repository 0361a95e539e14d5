//! The launches of a step, operation by operation.

use super::{CudaDevice, StepShape};
use crate::device::cuda::args::{EmbedArgs, StepCounts};
use crate::device::cuda::attention::{AttentionBucket, AttentionBuffers};
use crate::device::cuda::driver::DevicePtr;
use crate::device::cuda::norm::NormRows;
use crate::device::cuda::plan::Section;
use crate::device::cuda::products::{Activations, Epilogue, Matrix, Norm, Product};
use crate::device::cuda::rope::RopeLayer;
use crate::device::cuda::sample::{TextInfo, TextInputs};
use crate::device::cuda::sid::SidInputs;
use crate::device::cuda::step::Group;
use crate::error::Result;

fn present(at: DevicePtr) -> Option<DevicePtr> {
    (at != DevicePtr::NULL).then_some(at)
}

impl CudaDevice {
    /// `x = E[token]`.
    pub(super) fn enqueue_embed(&mut self, s: &StepShape) -> Result<()> {
        let args = EmbedArgs {
            table: self.weights.embed,
            rows: self.plan.at(Section::Rows),
            row_segment: self.plan.at(Section::RowSegment),
            segments: self.plan.at(Section::Segments),
            soft: self.plan.at(Section::Soft),
            counts: self.plan.at(Section::Counts),
            x: self.buffers.x.ptr(),
            hidden: self.shape.hidden as u32,
            vocab: self.shape.vocab as u32,
            soft_tokens: (s.layout.capacity(Section::Soft) / self.shape.hidden) as u32,
            max_rows: s.layout.capacity(Section::Rows).min(self.sizes.rows) as u32,
            max_segments: s.layout.capacity(Section::Segments) as u32,
            reserved: 0,
        };
        self.embed.enqueue(&mut *self.driver, &args, s.rows as u32)
    }

    /// Norm, products of `q`, `k`, `v`, q/k norm, rope, cache.
    pub(super) fn enqueue_attention_input(&mut self, s: &StepShape, layer: usize) -> Result<()> {
        let w = &self.weights.layers[layer];
        let (x, matrix) = (self.buffers.x, w.qkv);
        let product = Product {
            norm: Some(Norm { weight: w.input_norm, eps: self.shape.eps }),
            bias: present(w.qkv_bias),
            epilogue: Epilogue::Float,
            out: self.buffers.qkv,
            ld_out: matrix.n(),
            ..self.whole_rows(s, &x, &matrix)
        };
        self.products.enqueue(&mut *self.driver, &product)?;
        let [k, v] = self.cache[layer];
        let rope = RopeLayer {
            qkv: self.buffers.qkv,
            norms: present(w.q_norm).zip(present(w.k_norm)).map(|(q, k)| [q, k]),
            rows: self.plan.at(Section::Rows),
            counts: self.plan.at(Section::Counts),
            q: self.buffers.q,
            k,
            v,
        };
        self.rope.enqueue(&mut *self.driver, &rope, s.rows as u32)
    }

    /// Attention over the cache.
    pub(super) fn enqueue_attention(&mut self, s: &StepShape, layer: usize) -> Result<()> {
        let buffers = AttentionBuffers {
            q: self.buffers.q,
            out: self.buffers.attended.ptr(),
            partial: [self.buffers.partial, self.buffers.partial_sums],
            counts: self.plan.at(Section::Counts),
            segments: self.plan.at(Section::Segments),
            narrow: self.plan.at(Section::Narrow),
            wide: self.plan.at(Section::Wide),
            row_segment: self.plan.at(Section::RowSegment),
            blocks: self.plan.at(Section::Blocks),
        };
        let bucket = AttentionBucket {
            narrow: if s.narrow { s.layout.capacity(Section::Narrow) as u32 } else { 0 },
            wide: if s.wide { s.layout.capacity(Section::Wide) as u32 } else { 0 },
            joined_rows: if s.joins { s.rows as u32 } else { 0 },
        };
        self.attention.enqueue(&mut *self.driver, &buffers, &self.attention_layers[layer], &bucket)
    }

    /// Output product and residual.
    pub(super) fn enqueue_attention_output(&mut self, s: &StepShape, layer: usize) -> Result<()> {
        let w = &self.weights.layers[layer];
        let (x, matrix) = (self.buffers.attended, w.o);
        let product = Product {
            bias: present(w.o_bias),
            epilogue: Epilogue::Residual,
            out: self.buffers.x.ptr(),
            ld_out: self.shape.hidden,
            ..self.whole_rows(s, &x, &matrix)
        };
        self.products.enqueue(&mut *self.driver, &product)
    }

    /// Norm, gate and up products, activation.
    pub(super) fn enqueue_mlp_input(&mut self, s: &StepShape, layer: usize) -> Result<()> {
        let w = &self.weights.layers[layer];
        let (x, matrix) = (self.buffers.x, w.gate_up);
        let product = Product {
            norm: Some(Norm { weight: w.post_norm, eps: self.shape.eps }),
            epilogue: Epilogue::Gated,
            out: self.buffers.gated.ptr(),
            ld_out: self.shape.ffn,
            ..self.whole_rows(s, &x, &matrix)
        };
        self.products.enqueue(&mut *self.driver, &product)
    }

    /// Down product and residual.
    pub(super) fn enqueue_mlp_output(&mut self, s: &StepShape, layer: usize) -> Result<()> {
        let (x, matrix) = (self.buffers.gated, self.weights.layers[layer].down);
        let product = Product {
            epilogue: Epilogue::Residual,
            out: self.buffers.x.ptr(),
            ld_out: self.shape.hidden,
            ..self.whole_rows(s, &x, &matrix)
        };
        self.products.enqueue(&mut *self.driver, &product)
    }

    /// A product over all rows of the step, to be completed.
    fn whole_rows<'a>(&self, s: &StepShape, x: &'a Activations, w: &'a Matrix) -> Product<'a> {
        Product {
            x,
            norm: None,
            w,
            bias: None,
            epilogue: Epilogue::Store,
            out: self.buffers.x.ptr(),
            ld_out: self.shape.vocab,
            group: self.group(Group::All),
            bucket: s.rows.min(self.sizes.rows),
            max_out: self.sizes.rows,
        }
    }

    /// The logits that the plan's searches and its evaluation need.
    pub(super) fn enqueue_head(&mut self, s: &StepShape) -> Result<()> {
        if s.sids.is_some() {
            self.enqueue_codebooks(s)?;
        }
        for chunk in 0..s.head.norm_chunks {
            self.enqueue_vocabulary(Group::Norm(chunk), self.buffers.logits, self.sizes.logit_rows)?;
            let first = chunk * self.sizes.logit_rows;
            let norms = self.buffers.norms.add(4 * first);
            let (group, logits) = (self.group(Group::Norm(chunk)), self.buffers.logits);
            self.searches.enqueue_norms(
                &mut *self.driver,
                logits,
                self.shape.vocab,
                group,
                s.head.norm_bucket,
                norms,
            )?;
        }
        if s.head.full_bucket > 0 {
            let rows = self.buffers.full_logits.1 / self.shape.vocab;
            self.enqueue_vocabulary(Group::Full, self.buffers.full_logits.0, rows)?;
        }
        Ok(())
    }

    /// Norm and products of the rows that need a codebook's logits.
    fn enqueue_codebooks(&mut self, s: &StepShape) -> Result<()> {
        let inputs = self.sid_inputs(s);
        self.searches.enqueue_gather(&mut *self.driver, &inputs)?;
        let Some(layout) = self.layout.clone() else { return Ok(()) };
        for group in self.searches.head_groups().to_vec() {
            let rows = NormRows {
                norm: Norm { weight: self.weights.norm, eps: self.shape.eps },
                x: self.buffers.x.ptr(),
                out: self.buffers.head_rows.ptr(),
                list: Some(group.list),
                group: group.record,
                hidden: self.shape.hidden,
                max_rows: self.sizes.rows,
                max_out: self.sizes.head_rows,
                bucket: group.bucket,
            };
            self.norm.enqueue(&mut *self.driver, &rows)?;
            let key = (group.item_type, group.level);
            let w = self.weights.codebook(&mut *self.driver, &self.products, &layout, key)?;
            let x = self.buffers.head_rows;
            let product = Product {
                epilogue: Epilogue::Float,
                out: self.buffers.code_logits,
                ld_out: w.n(),
                group: group.record,
                bucket: group.bucket,
                max_out: self.sizes.codes / w.n(),
                ..self.whole_rows(s, &x, &w)
            };
            self.products.enqueue(&mut *self.driver, &product)?;
        }
        Ok(())
    }

    /// Norm and product of a group of rows over the whole vocabulary.
    fn enqueue_vocabulary(&mut self, group: Group, out: DevicePtr, max_out: usize) -> Result<()> {
        let rows = NormRows {
            norm: Norm { weight: self.weights.norm, eps: self.shape.eps },
            x: self.buffers.x.ptr(),
            out: self.buffers.head_rows.ptr(),
            list: Some(self.plan.at(Section::HeadRows).add(4 * self.step.list(group))),
            group: self.group(group),
            hidden: self.shape.hidden,
            max_rows: self.sizes.rows,
            max_out: self.sizes.head_rows,
            bucket: self.step.bucket(group),
        };
        self.norm.enqueue(&mut *self.driver, &rows)?;
        let (x, head) = (self.buffers.head_rows, self.weights.head);
        let product = Product {
            x: &x,
            norm: None,
            w: &head,
            bias: None,
            epilogue: Epilogue::Float,
            out,
            ld_out: self.shape.vocab,
            group: self.group(group),
            bucket: self.step.bucket(group),
            max_out,
        };
        self.products.enqueue(&mut *self.driver, &product)
    }

    /// Logits of the text rows, and their tokens, chunk by chunk.
    pub(super) fn enqueue_sample(&mut self, s: &StepShape) -> Result<()> {
        for chunk in 0..s.head.text_chunks {
            self.enqueue_vocabulary(Group::Text(chunk), self.buffers.logits, self.sizes.logit_rows)?;
            let inputs = TextInputs {
                logits: self.buffers.logits,
                logits_len: self.sizes.logit_rows * self.shape.vocab,
                records: self
                    .plan
                    .at(Section::Text)
                    .add(chunk * self.sizes.logit_rows * size_of::<TextInfo>()),
                edits: self.plan.at(Section::TextWords),
                counts: self.plan.at(Section::Counts).add((1 + chunk) * size_of::<StepCounts>()),
            };
            self.sampler.enqueue(&mut *self.driver, &inputs, s.head.text_bucket as u32)?;
        }
        Ok(())
    }

    /// Advances the searches.
    pub(super) fn enqueue_sids(&mut self, s: &StepShape) -> Result<()> {
        let inputs = self.sid_inputs(s);
        self.searches.enqueue_step(&mut *self.driver, &inputs)
    }

    fn sid_inputs(&self, _s: &StepShape) -> SidInputs {
        SidInputs {
            counts: self.plan.at(Section::Counts),
            candidates: self.plan.at(Section::Candidates),
            steps: self.plan.at(Section::Steps),
            groups: self.plan.at(Section::SidGroups),
            logits: self.buffers.code_logits,
            logits_len: self.sizes.codes,
            norms: self.buffers.norms,
        }
    }
}
