//! A device whose steps wait to be let through.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use sidereal::Result;
use sidereal::device::hash::HashDevice;
use sidereal::device::ops::{Buffer, Device, Outcome, Path, Plan, SearchSpec};
use sidereal::engine::{Engine, EngineBuilder};
use sidereal::ids::SearchId;

#[derive(Default)]
struct State {
    open: bool,
    /// Steps that have come to the gate.
    steps: u64,
}

/// Opens and closes the gate; closed at first.
#[derive(Clone, Default)]
pub struct Turnstile {
    state: Arc<(Mutex<State>, Condvar)>,
}

impl Turnstile {
    pub fn open(&self) {
        self.state.0.lock().unwrap().open = true;
        self.state.1.notify_all();
    }

    /// Waits until a step stands at the gate, or has been let through.
    pub fn wait_for_step(&self) {
        let state = self.state.0.lock().unwrap();
        let waited =
            self.state.1.wait_timeout_while(state, Duration::from_secs(60), |state| state.steps == 0);
        assert!(!waited.unwrap().1.timed_out(), "no step came");
    }

    fn pass(&self) {
        let mut state = self.state.0.lock().unwrap();
        state.steps += 1;
        self.state.1.notify_all();
        drop(self.state.1.wait_while(state, |state| !state.open).unwrap());
    }

    /// An engine behind this gate.
    pub fn engine(&self, configure: impl FnOnce(EngineBuilder) -> EngineBuilder) -> Engine {
        let gate = self.clone();
        configure(EngineBuilder::tiny().unwrap())
            .device(move |config| Ok(Box::new(Gated(HashDevice::new(config, Duration::ZERO)?, gate))))
            .start()
            .unwrap()
    }
}

struct Gated(HashDevice, Turnstile);

impl Device for Gated {
    fn describe(&self) -> String {
        "a gate".to_owned()
    }
    fn open_search(&mut self, spec: SearchSpec) -> Result<SearchId> {
        self.0.open_search(spec)
    }
    fn close_search(&mut self, search: SearchId) {
        self.0.close_search(search);
    }
    fn search_paths(&mut self, search: SearchId) -> Result<Vec<Path>> {
        self.0.search_paths(search)
    }
    fn begin(&mut self, plan: &Plan) -> Result<()> {
        self.1.pass();
        self.0.begin(plan)
    }
    fn forward(&mut self, plan: &Plan) -> Result<bool> {
        self.0.forward(plan)
    }
    fn embed(&mut self, plan: &Plan) -> Result<()> {
        self.0.embed(plan)
    }
    fn attention_input(&mut self, plan: &Plan, layer: usize) -> Result<()> {
        self.0.attention_input(plan, layer)
    }
    fn attention(&mut self, plan: &Plan, layer: usize) -> Result<()> {
        self.0.attention(plan, layer)
    }
    fn attention_output(&mut self, plan: &Plan, layer: usize) -> Result<()> {
        self.0.attention_output(plan, layer)
    }
    fn mlp_input(&mut self, plan: &Plan, layer: usize) -> Result<()> {
        self.0.mlp_input(plan, layer)
    }
    fn mlp_output(&mut self, plan: &Plan, layer: usize) -> Result<()> {
        self.0.mlp_output(plan, layer)
    }
    fn head(&mut self, plan: &Plan) -> Result<()> {
        self.0.head(plan)
    }
    fn sample(&mut self, plan: &Plan) -> Result<()> {
        self.0.sample(plan)
    }
    fn step_sids(&mut self, plan: &Plan) -> Result<()> {
        self.0.step_sids(plan)
    }
    fn finish(&mut self) -> Result<Outcome> {
        self.0.finish()
    }
    fn read(&mut self, buffer: Buffer) -> Result<Vec<f32>> {
        self.0.read(buffer)
    }
    fn write(&mut self, buffer: Buffer, values: &[f32]) -> Result<()> {
        self.0.write(buffer, values)
    }
}
