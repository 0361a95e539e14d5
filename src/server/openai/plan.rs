//! From a body to requests of the engine, one per prompt and answer.

use super::Route;
use super::body::{ChatBody, Common, CompletionBody, Object, refuse};
use super::message::{ChatMessage, Prompt};
use crate::engine::{OneOrMany, Output, Request};
use crate::error::{Error, Result};

/// Most answers per prompt.
const MAX_N: usize = 128;
/// Most answers of text per call, all prompts together.
const MAX_ANSWERS: usize = 1024;

/// What a body asks for.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The requests, prompt by prompt.
    pub requests: Requests,
    /// The model asked for.
    pub model: Option<String>,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// Whether a stream ends with a chunk of its usage.
    pub include_usage: bool,
    /// Which form is spoken.
    pub(super) route: Route,
    /// What the answers consist of.
    pub(super) output: Output,
    /// How many requests there are.
    pub(super) count: usize,
    /// Requests per prompt.
    pub(super) variants: usize,
    /// Choices per request: the items of a list, else 1.
    pub(super) per_request: usize,
    names: Names,
}

/// The requests of a plan. Each is made when its turn comes: a body with many answers is not held many times.
#[derive(Clone, Debug)]
pub(crate) struct Requests {
    /// All of a request but its prompt, which is left out where `prompts` has it.
    base: Request,
    prompts: Prompts,
    variants: usize,
    next: usize,
}

#[derive(Clone, Debug)]
enum Prompts {
    /// The base has the messages.
    Messages,
    Texts(Vec<String>),
    Tokens(Vec<Vec<i64>>),
}

impl Prompts {
    fn len(&self) -> usize {
        match self {
            Prompts::Messages => 1,
            Prompts::Texts(texts) => texts.len(),
            Prompts::Tokens(lists) => lists.len(),
        }
    }
}

impl Iterator for Requests {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        let (prompt, variant) = (self.next / self.variants, self.next % self.variants);
        if prompt >= self.prompts.len() {
            return None;
        }
        self.next += 1;
        let last_variant = variant + 1 == self.variants;
        let last = last_variant && prompt + 1 == self.prompts.len();
        let mut request = if last { std::mem::take(&mut self.base) } else { self.base.clone() };
        match &mut self.prompts {
            Prompts::Messages => {}
            Prompts::Texts(texts) => request.prompt = Some(take_or_clone(&mut texts[prompt], last_variant)),
            Prompts::Tokens(lists) => {
                request.prompt_token_ids = Some(take_or_clone(&mut lists[prompt], last_variant));
            }
        }
        request.seed = request.seed.map(|seed| seed.wrapping_add(variant as i64));
        Some(request)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.prompts.len() * self.variants - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Requests {}

fn take_or_clone<T: Clone + Default>(value: &mut T, take: bool) -> T {
    if take { std::mem::take(value) } else { value.clone() }
}

/// What the body calls the fields that the native request names otherwise.
#[derive(Clone, Debug)]
struct Names {
    prompt: PromptNames,
    max_tokens: &'static str,
    logprobs: &'static str,
    choice: &'static str,
    /// Messages whose text was cut at its items.
    split: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PromptNames {
    One,
    Listed,
}

impl Plan {
    /// An error of the engine about one of the requests, with the name that the field has in the body.
    pub(crate) fn explain(&self, request: usize, error: Error) -> Error {
        let Error::Invalid { field, .. } = &error else { return error };
        let renamed = self.names.of(field, request / self.variants);
        if renamed == *field { error } else { error.at(renamed) }
    }
}

impl Names {
    fn of(&self, field: &str, prompt: usize) -> String {
        let root = field.find(['.', '[']).unwrap_or(field.len());
        let (root, below) = field.split_at(root);
        match root {
            "prompt" | "prompt_token_ids" => match self.prompt {
                PromptNames::One => format!("prompt{below}"),
                PromptNames::Listed => format!("prompt[{prompt}]{below}"),
            },
            "max_tokens" => format!("{}{below}", self.max_tokens),
            "logprobs" => format!("{}{below}", self.logprobs),
            "choice" => format!("{}{below}", self.choice),
            "messages" => {
                let inside = |m: &&usize| below.starts_with(&format!("[{m}].content["));
                match self.split.iter().find(inside) {
                    Some(m) => format!("messages[{m}].items"),
                    None => field.to_owned(),
                }
            }
            _ => field.to_owned(),
        }
    }
}

impl ChatBody {
    /// What the body asks for.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the field for what cannot be said in a native request; its own bounds are the engine's to check.
    pub(crate) fn plan(mut self) -> Result<Plan> {
        let mut common = self.common();
        let messages = self.messages.unwrap_or_default();
        if messages.is_empty() {
            return Err(Error::invalid("messages", "missing or empty; at least 1 message is needed"));
        }
        let with_items = |(_, Object(message)): &(usize, &Object<ChatMessage>)| {
            message.items.as_ref().is_some_and(|items| !items.is_empty())
        };
        let split = messages.iter().enumerate().filter(with_items).map(|(at, _)| at).collect();
        let messages = messages.into_iter().enumerate().map(|(at, Object(message))| message.native(at));
        let messages = messages.collect::<Result<Vec<_>>>()?;
        let max_tokens = match (common.max_tokens, self.max_completion_tokens) {
            (Some(old), Some(new)) if old != new => {
                let message = format!("{new} contradicts max_tokens, which is {old}");
                return Err(Error::invalid("max_completion_tokens", message));
            }
            (None, Some(new)) => {
                common.max_tokens = Some(new);
                "max_completion_tokens"
            }
            _ => "max_tokens",
        };
        let logprobs = match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (false, Some(count)) if count != 0 => {
                return Err(Error::invalid("top_logprobs", format!("{count} needs logprobs to be true")));
            }
            (false, _) => None,
            (true, count) => Some(count.unwrap_or(0)),
        };
        let names =
            Names { prompt: PromptNames::One, max_tokens, logprobs: "top_logprobs", choice: "choice", split };
        let base = Request { messages: Some(messages), logprobs, ..Request::default() };
        common.plan(Route::Chat, base, Prompts::Messages, names)
    }
}

impl CompletionBody {
    /// What the body asks for.
    ///
    /// # Errors
    /// As [`ChatBody::plan`].
    pub(crate) fn plan(mut self) -> Result<Plan> {
        let common = self.common();
        refuse("", &[("suffix", &self.suffix)])?;
        if self.echo == Some(true) {
            return Err(Error::invalid("echo", "true is not served: an answer does not repeat its prompt"));
        }
        let n = common.n.unwrap_or(1);
        if let Some(best_of) = self.best_of.filter(|&best_of| best_of != n) {
            let message = format!(
                "{best_of} is not served: all answers are returned, so it can only be n, which is {n}"
            );
            return Err(Error::invalid("best_of", message));
        }
        let (prompts, prompt) = match self.prompt {
            None => return Err(Error::invalid("prompt", "missing; a text or token ids are needed")),
            Some(Prompt::Text(text)) => (Prompts::Texts(vec![text]), PromptNames::One),
            Some(Prompt::Tokens(ids)) => (Prompts::Tokens(vec![ids]), PromptNames::One),
            Some(Prompt::Texts(texts)) => (Prompts::Texts(texts), PromptNames::Listed),
            Some(Prompt::TokenLists(lists)) => (Prompts::Tokens(lists), PromptNames::Listed),
        };
        if prompts.len() == 0 {
            return Err(Error::invalid("prompt", "the list is empty; at least 1 prompt is needed"));
        }
        let names = Names {
            prompt,
            max_tokens: "max_tokens",
            logprobs: "logprobs",
            choice: "choice",
            split: Vec::new(),
        };
        let base = Request { logprobs: self.logprobs, ..Request::default() };
        common.plan(Route::Completion, base, prompts, names)
    }
}

impl Common {
    /// The plan for these prompts; `base` holds what is the route's own.
    fn plan(mut self, route: Route, base: Request, prompts: Prompts, mut names: Names) -> Result<Plan> {
        self.refuse_unserved()?;
        let stream = self.stream.unwrap_or(false);
        let include_usage = self.include_usage(stream)?;
        let output = self.output()?;
        if let Some((field, choice)) = self.take_choice()? {
            (self.choice, names.choice) = (Some(choice), field);
        }
        let (variants, per_request) = self.answers(output, prompts.len())?;
        let model = self.model.take();
        let mut base = self.native(base, output);
        if output == Output::Items || base.choice.is_some() {
            drop_neutral(&mut base);
        }
        if base.choice.is_some()
            && let Some(max_tokens) = base.max_tokens.take_if(|max_tokens| *max_tokens < 1)
        {
            let message = format!("{max_tokens} is below 1, the least that is allowed");
            return Err(Error::invalid(names.max_tokens, message));
        }
        if base.choice.is_some() {
            // Nothing is generated that it could bound.
            base.max_tokens = None;
        }
        let requests = Requests { base, prompts, variants, next: 0 };
        let count = requests.len();
        Ok(Plan {
            requests,
            model,
            stream,
            include_usage,
            route,
            output,
            count,
            variants,
            per_request,
            names,
        })
    }

    fn refuse_unserved(&self) -> Result<()> {
        refuse(
            "",
            &[
                ("tools", &self.tools),
                ("tool_choice", &self.tool_choice),
                ("functions", &self.functions),
                ("function_call", &self.function_call),
                ("audio", &self.audio),
                ("modalities", &self.modalities),
                ("prediction", &self.prediction),
                ("reasoning_effort", &self.reasoning_effort),
                ("web_search_options", &self.web_search_options),
                ("guided_json", &self.guided_json),
                ("guided_regex", &self.guided_regex),
                ("guided_grammar", &self.guided_grammar),
            ],
        )
    }

    fn include_usage(&self, stream: bool) -> Result<bool> {
        let Some(Object(options)) = self.stream_options else { return Ok(false) };
        if !stream {
            return Err(Error::invalid("stream_options", "needs stream to be true"));
        }
        if options.include_obfuscation == Some(true) {
            return Err(Error::invalid("stream_options.include_obfuscation", "true is not served"));
        }
        Ok(options.include_usage.unwrap_or(false))
    }

    /// The output, which `use_beam_search` may name as well.
    fn output(&self) -> Result<Output> {
        match (self.output, self.use_beam_search.unwrap_or(false)) {
            (Some(Output::Items) | None, true) => Ok(Output::Items),
            (Some(_), true) => {
                let message = "true is not allowed with output text or mixed: it shapes a list of items";
                Err(Error::invalid("use_beam_search", message))
            }
            (output, false) => Ok(output.unwrap_or_default()),
        }
    }

    /// The strings to choose from, and the field that holds them.
    fn take_choice(&mut self) -> Result<Option<(&'static str, Vec<String>)>> {
        let format = self.response_format.take().map(|Object(format)| format);
        if let Some(format) = &format
            && !(format.kind == "text" && format.choice.is_none()
                || format.kind == "choice" && format.choice.is_some())
        {
            let message = match format.kind.as_str() {
                "text" => "`text` has no choice".to_owned(),
                "choice" => "`choice` needs the strings to choose from in response_format.choice".to_owned(),
                other => format!("`{other}` is not served; `text` and `choice` are"),
            };
            return Err(Error::invalid("response_format.type", message));
        }
        let json_schema = format.as_ref().and_then(|format| format.json_schema);
        refuse("response_format.", &[("json_schema", &json_schema)])?;
        let given = [
            ("choice", self.choice.take()),
            ("guided_choice", self.guided_choice.take()),
            (
                "structured_outputs.choice",
                self.structured_outputs.take().and_then(|Object(outputs)| outputs.choice),
            ),
            ("response_format.choice", format.and_then(|format| format.choice)),
        ];
        let mut given = given.into_iter().filter_map(|(field, choice)| Some((field, choice?)));
        let first = given.next();
        if let (Some((first, _)), Some((second, _))) = (&first, given.next()) {
            return Err(Error::invalid(second, format!("the strings are given twice; {first} has them too")));
        }
        Ok(first)
    }

    /// Requests per prompt, and choices per request.
    fn answers(&self, output: Output, prompts: usize) -> Result<(usize, usize)> {
        let too_many = |requests: usize| {
            let message =
                format!("{requests} answers of {prompts} prompts are more than the {MAX_ANSWERS} allowed");
            Err(Error::invalid(if prompts > 1 { "prompt" } else { "n" }, message))
        };
        if output == Output::Items {
            let listed = match &self.quotas {
                Some(quotas) => quotas.iter().fold(0, |sum: i64, quota| sum.saturating_add(quota.n.max(0))),
                None => self.n.unwrap_or(1),
            };
            // Bounds of both are the engine's to check.
            let per_request = usize::try_from(listed).unwrap_or(0).max(1);
            return if prompts > MAX_ANSWERS { too_many(prompts) } else { Ok((1, per_request)) };
        }
        let n = match (self.n.unwrap_or(1), &self.choice) {
            (1, _) => 1,
            (n, Some(_)) => {
                let message = format!(
                    "{n} is not allowed with a choice: there is 1 answer, with the scores of all strings"
                );
                return Err(Error::invalid("n", message));
            }
            (n, None) => usize::try_from(n).ok().filter(|n| (1..=MAX_N).contains(n)).ok_or_else(|| {
                Error::invalid("n", format!("{n} is outside of the allowed range from 1 to {MAX_N}"))
            })?,
        };
        let requests = n.saturating_mul(prompts);
        if requests > MAX_ANSWERS { too_many(requests) } else { Ok((n, 1)) }
    }

    fn native(self, base: Request, output: Output) -> Request {
        let listed = output == Output::Items;
        let n = if listed && self.quotas.is_none() {
            Some(self.n.unwrap_or(1))
        } else {
            self.n.filter(|_| listed)
        };
        let mut beam_width = self.beam_width;
        if let (Some(true), Some(OneOrMany::One(width @ 1..)), Some(n)) =
            (self.use_beam_search, &mut beam_width, n)
        {
            *width = n.max(*width);
        }
        Request {
            output: Some(output),
            item_types: self.item_types,
            n,
            beam_width,
            score: self.score,
            allow: self.allow,
            exclude: self.exclude,
            filter: self.filter,
            collisions: self.collisions,
            quotas: self.quotas,
            boosts: self.boosts,
            diversity: self.diversity,
            span_beam: self.span_beam,
            allow_repeats: self.allow_repeats,
            unknown_items: self.unknown_items,
            truncate: self.truncate,
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias,
            stop: self.stop,
            stop_token_ids: self.stop_token_ids,
            ignore_eos: self.ignore_eos,
            seed: self.seed,
            return_attributes: self.return_attributes,
            return_token_ids: self.return_token_ids,
            choice: self.choice,
            ..base
        }
    }
}

/// Takes out what shapes text, where it says nothing: many clients always send it.
fn drop_neutral(request: &mut Request) {
    request.top_p.take_if(|value| *value == 1.0);
    request.top_k.take_if(|value| *value == 0 || *value == -1);
    request.min_p.take_if(|value| *value == 0.0);
    request.repetition_penalty.take_if(|value| *value == 1.0);
    request.presence_penalty.take_if(|value| *value == 0.0);
    request.frequency_penalty.take_if(|value| *value == 0.0);
    request.min_tokens.take_if(|value| *value == 0);
    request.ignore_eos.take_if(|value| !*value);
    request.logit_bias.take_if(|bias| bias.is_empty());
    request.stop.take_if(|stop| matches!(stop, OneOrMany::Many(list) if list.is_empty()));
    request.stop_token_ids.take_if(|list| list.is_empty());
}
