mod bodies;
mod schemas;
mod streams;

use serde_json::Value;

use super::{ChatBody, CompletionBody, Plan};
use crate::engine::Request;
use crate::error::{Error, Result};

fn chat(body: &Value) -> Result<Plan> {
    ChatBody::from_json(body.to_string().as_bytes())?.plan()
}

fn completion(body: &Value) -> Result<Plan> {
    CompletionBody::from_json(body.to_string().as_bytes())?.plan()
}

/// The plan's requests as JSON.
fn requests(plan: Plan) -> Vec<Value> {
    plan.requests.map(|request: Request| serde_json::to_value(request).unwrap()).collect()
}

/// `base` with the fields of `more`.
fn with(base: &Value, more: &Value) -> Value {
    let mut all = base.as_object().unwrap().clone();
    all.extend(more.as_object().unwrap().clone());
    all.into()
}

fn invalid(result: Result<Plan>) -> (String, String) {
    match result {
        Err(Error::Invalid { field, message }) => (field, message),
        Err(other) => panic!("{other}"),
        Ok(plan) => panic!("accepted: {:?}", requests(plan)),
    }
}
