//! Samples as tokens, made by the engine itself: what it would see of the prompt, and what it would have to write.

use std::time::Duration;

use serde::Serialize;

use super::{Prompt, Sample, Works};
use crate::device::hash::HashDevice;
use crate::engine::{Content, Engine, EngineBuilder, Message, Output, Part, Request};
use crate::error::{Error, Result};
use crate::ids::TokenId;
use crate::text::Piece;

/// A sample as tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rendered {
    /// The prompt as the engine feeds it, template, generation prompt and the opener of an `items` answer included.
    pub prompt_token_ids: Vec<TokenId>,
    /// The rest: what is to be learnt, end token included.
    pub answer_token_ids: Vec<TokenId>,
    /// What is learnt beside it, each as if there were nothing else: other works that the list may hold as well, earlier items of the history.
    pub others: Vec<RenderedOther>,
}

/// What is learnt beside a sample.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RenderedOther {
    /// Its prompt; none: the sample's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<TokenId>>,
    /// The codes of an item. Its opener and closer are forced, and the end is learnt by the sample's own answer.
    pub answer_token_ids: Vec<TokenId>,
}

/// Renders samples for a model folder.
pub struct Renderer {
    engine: Engine,
    eos: TokenId,
    /// Items are written as titles, because the model has no SIDs yet.
    titles: bool,
}

impl Renderer {
    /// For a model and a catalog that it speaks the SIDs of. The weights are mapped and never read.
    ///
    /// # Errors
    /// Those of [`EngineBuilder::start`]; [`Error::Unsupported`] without a catalog, delimiters in the layout, or an end token.
    pub fn spans(builder: EngineBuilder) -> Result<Renderer> {
        if builder.layout_ref().is_none_or(|layout| layout.open.is_none() || layout.close.is_none()) {
            return Err(Error::Unsupported(
                "the model has no SID layout with opener and closer; `sidereal sid extend` gives it one"
                    .to_owned(),
            ));
        }
        if builder.catalog_ref().is_none() {
            return Err(Error::Unsupported("spans need a catalog".to_owned()));
        }
        Renderer::new(builder, false)
    }

    /// For a model without SIDs: titles stand for items.
    ///
    /// # Errors
    /// As [`Renderer::spans`].
    pub fn titles(builder: EngineBuilder) -> Result<Renderer> {
        Renderer::new(builder, true)
    }

    fn new(builder: EngineBuilder, titles: bool) -> Result<Renderer> {
        let eos = builder.tokenizer_ref().eos().or(builder.model_ref().eos().first().copied());
        let eos = eos.ok_or_else(|| Error::Unsupported("the model has no end token".to_owned()))?;
        let engine =
            builder.device(|config| Ok(Box::new(HashDevice::new(config, Duration::ZERO)?))).start()?;
        Ok(Renderer { engine, eos, titles })
    }

    /// Renders a sample.
    ///
    /// # Errors
    /// Those of [`Engine::validate`]: an item that the catalog lacks, a prompt that does not fit.
    pub fn render(&self, sample: &Sample, works: &Works) -> Result<Rendered> {
        let (prompt_token_ids, answer) = if self.titles {
            let answer = self.engine.tokenizer().encode(&titles(&sample.answer, works))?;
            (self.titles_of(&sample.prompt, works)?, answer)
        } else {
            let mut answer = self.answer(&sample.answer)?;
            if sample.prompt.task.output() == Output::Items {
                // The engine opens the one span of an `items` answer itself.
                answer.remove(0);
            }
            (self.prompt(&sample.prompt)?, answer)
        };
        let answer_token_ids = answer.into_iter().chain([self.eos]).collect();
        let others = if self.titles { Vec::new() } else { self.others(sample, works)? };
        Ok(Rendered { prompt_token_ids, answer_token_ids, others })
    }

    fn others(&self, sample: &Sample, works: &Works) -> Result<Vec<RenderedOther>> {
        if sample.prompt.task.output() != Output::Items {
            return Ok(Vec::new());
        }
        let codes = |place: usize| {
            let span = self.answer(&[Part::Item { id: works.all()[place].id.clone() }])?;
            Ok(span[1..span.len() - 1].to_vec())
        };
        let same = sample
            .others
            .iter()
            .map(|&place| Ok(RenderedOther { prompt_token_ids: None, answer_token_ids: codes(place)? }));
        let earlier = sample.earlier.iter().map(|(prompt, place)| {
            let prompt_token_ids = Some(self.prompt(prompt)?);
            Ok(RenderedOther { prompt_token_ids, answer_token_ids: codes(*place)? })
        });
        same.chain(earlier).collect()
    }

    /// The tokens of a prompt as the engine feeds them.
    fn prompt(&self, prompt: &Prompt) -> Result<Vec<TokenId>> {
        // An `items` answer asks for no token: its one span is the engine's own.
        let max_tokens = (prompt.task.output() != Output::Items).then_some(1);
        Ok(self.engine.validate(&Request { max_tokens, ..prompt.request() })?.tokens().to_vec())
    }

    /// Those of a prompt with titles in place of items.
    fn titles_of(&self, prompt: &Prompt, works: &Works) -> Result<Vec<TokenId>> {
        let parts = vec![Part::Text { text: titles(&prompt.parts(), works) }];
        let message = Message { role: "user".to_owned(), content: Content::Parts(parts) };
        let request = Request {
            messages: Some(vec![message]),
            output: Some(Output::Text),
            max_tokens: Some(1),
            ..Request::default()
        };
        Ok(self.engine.validate(&request)?.tokens().to_vec())
    }

    fn answer(&self, parts: &[Part]) -> Result<Vec<TokenId>> {
        let (Some(layout), Some(view)) = (self.engine.layout(), self.engine.view()) else {
            return Err(Error::Unsupported("items need a layout and a catalog".to_owned()));
        };
        let piece = |part: &Part| match part {
            Part::Text { text } => Ok(Piece::Text(text.clone())),
            Part::Item { id } => {
                let item =
                    view.find(id).ok_or_else(|| Error::invalid("answer", format!("unknown item `{id}`")))?;
                Ok(Piece::Tokens(layout.span(item.item_type(), &item.codes())))
            }
            _ => Err(Error::invalid("answer", "holds text and items only")),
        };
        let pieces = parts.iter().map(piece).collect::<Result<Vec<_>>>()?;
        Ok(self.engine.tokenizer().plain(&pieces)?.tokens)
    }
}

/// Parts as plain text, with titles in place of items.
pub fn titles(parts: &[Part], works: &Works) -> String {
    let title =
        |id: &String| works.find(id).map_or(id.as_str(), |place| &works.all()[place].title).to_owned();
    let mut out = String::new();
    for part in parts {
        match part {
            Part::Text { text } => out.push_str(text),
            Part::Item { id } => out.push_str(&title(id)),
            Part::History { items } => {
                let titles: Vec<String> = items.iter().map(title).collect();
                out.push_str(&titles.join("; "));
            }
            Part::Embedding { .. } => {}
        }
    }
    out
}
