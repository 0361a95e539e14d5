//! The walk through a decoder: one for every architecture and every device.

use crate::device::ops::{Device, Outcome, Plan};
use crate::error::Result;

/// Runs one step: everything that `plan` asks for, on a device made for a model of `layers` layers.
///
/// # Errors
/// Whatever the device returns; after an error the device is not used again.
pub fn step(device: &mut dyn Device, plan: &Plan, layers: usize) -> Result<Outcome> {
    device.begin(plan)?;
    if !device.forward(plan)? {
        device.embed(plan)?;
        for layer in 0..layers {
            device.attention_input(plan, layer)?;
            device.attention(plan, layer)?;
            device.attention_output(plan, layer)?;
            device.mlp_input(plan, layer)?;
            device.mlp_output(plan, layer)?;
        }
    }
    // A chunk in the middle of a prompt needs no logits.
    if !(plan.text.is_empty() && plan.sids.is_empty() && plan.full_logits.is_empty()) {
        device.head(plan)?;
    }
    if !plan.text.is_empty() {
        device.sample(plan)?;
    }
    if !plan.sids.is_empty() {
        device.step_sids(plan)?;
    }
    device.finish()
}
