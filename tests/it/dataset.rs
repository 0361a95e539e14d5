//! Prompts and answers of training are those of serving, and both are what transformers makes of the same text.

use serde_json::{Value, json};
use sidereal::dataset::{Mix, Renderer, Sampler, SimulationOptions, Split, Task, Works, simulate};
use sidereal::demo;
use sidereal::engine::Request;

/// Made by tests/golden/prompts.py.
const GOLDEN: &str = include_str!("../golden/prompts.jsonl");

#[test]
fn training_and_serving_render_what_transformers_does() {
    let builder = demo::builder().unwrap();
    let works = Works::of(builder.catalog_ref().unwrap()).unwrap();
    let people = SimulationOptions { users: 100, held_out: 10, ..SimulationOptions::default() };
    let histories = simulate(&works, &people);
    let sampler = Sampler::new(&works, &histories, Split::Train, 11);
    let mix: Mix = "search=3,recommend=2,explain=3,profile=1,describe=1,find=1,type=1".parse().unwrap();
    let renderer = Renderer::spans(demo::builder().unwrap()).unwrap();
    let engine = builder.start().unwrap();

    let golden: Vec<Value> = GOLDEN.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let plan = sampler.plan(&mix, golden.len()).unwrap();
    assert_eq!(plan.len(), 80);
    for ((task, number), golden) in plan.into_iter().zip(&golden) {
        let sample = sampler.sample(task, number);
        // Another request: the wordings changed, and tests/golden/prompts.py must be run again.
        assert_eq!(json!(sample.prompt.request()), golden["request"]);
        assert_eq!(json!(sample.answer), golden["answer"]);
        let trained = renderer.render(&sample, &works).unwrap();
        assert_eq!(json!(trained.prompt_token_ids), golden["prompt_token_ids"], "{golden}");
        assert_eq!(json!(trained.answer_token_ids), golden["answer_token_ids"], "{golden}");
        let request = Request::from_json(&golden["request"].to_string()).unwrap();
        let served = engine.validate(&request).unwrap();
        assert_eq!(json!(served.tokens()), golden["prompt_token_ids"], "{golden}");
    }
}

/// Evaluation asks about whole histories; what is learnt from must not be mostly shorter.
#[test]
fn histories_to_learn_from_are_as_long_as_a_prompt_shows() {
    let builder = demo::builder().unwrap();
    let works = Works::of(builder.catalog_ref().unwrap()).unwrap();
    for (length, least) in [(5, 4), (12, 8)] {
        let lengths = (length, length);
        let people = SimulationOptions { users: 50, held_out: 0, lengths, ..SimulationOptions::default() };
        let histories = simulate(&works, &people);
        let sampler = Sampler::new(&works, &histories, Split::Train, 3);
        for task in [Task::Recommend, Task::Explain] {
            let taken = (0..400).map(|number| sampler.sample(task, number).taken.len());
            let mut taken: Vec<usize> = taken.filter(|&taken| taken > 0).collect();
            taken.sort_unstable();
            taken.dedup();
            assert_eq!(taken, (least..length).collect::<Vec<_>>(), "{task:?}");
        }
    }
}
