//! From the prompt of a request to token ids: typed parts resolved, the template rendered, lengths made to fit.

use std::sync::Arc;

use super::request::{Content, Message, Part, Request, Truncate, UnknownItems};
use super::validate::Frontend;
use crate::catalog::View;
use crate::error::{Error, Result};
use crate::ids::TokenId;
use crate::text::{ChatMessage, Encoded, Piece};

/// A prompt ready for the model.
pub(super) struct Prompt {
    pub tokens: Vec<TokenId>,
    /// Places in `tokens` that are soft tokens, with their vectors.
    pub soft: Vec<(usize, Arc<[f32]>)>,
    /// Items of the prompt that the catalog does not hold.
    pub unknown: usize,
    /// History items left out so that the prompt fits.
    pub dropped: usize,
    /// Tokens cut by `truncate`.
    pub cut: usize,
}

/// What a prompt must leave free, and what may be done about it.
pub(super) struct Room {
    /// Most tokens of the prompt, the opener of an `items` answer not counted.
    pub tokens: usize,
    /// Positions that the model has, for the message.
    pub positions: usize,
    /// Tokens that the answer asks for, for the message.
    pub answer: usize,
}

/// A message with its items looked up; histories keep their spans apart so that the oldest can go.
struct Resolved {
    role: String,
    pieces: Vec<ResolvedPiece>,
}

enum ResolvedPiece {
    Text(String),
    Span(Vec<TokenId>),
    History(Vec<Vec<TokenId>>),
    Soft(Arc<[f32]>),
}

impl Frontend {
    /// Encodes the prompt of a request.
    pub(super) fn prompt(&self, request: &Request, view: Option<&View>, room: &Room) -> Result<Prompt> {
        let given =
            [request.messages.is_some(), request.prompt.is_some(), request.prompt_token_ids.is_some()];
        if given.iter().filter(|&&g| g).count() != 1 {
            return Err(Error::invalid(
                "messages",
                "exactly one of messages, prompt and prompt_token_ids must be given",
            ));
        }
        if let Some(ids) = &request.prompt_token_ids {
            let tokens = self.check_tokens("prompt_token_ids", ids)?;
            return self.fit("prompt_token_ids", Encoded { tokens, soft: Vec::new() }, &[], request, room);
        }
        if let Some(text) = &request.prompt {
            let encoded =
                self.tokenizer.plain(&[Piece::Text(text.clone())]).map_err(|error| error.at("prompt"))?;
            return self.fit("prompt", encoded, &[], request, room);
        }
        let messages = request.messages.as_deref().unwrap_or_default();
        if messages.is_empty() {
            return Err(Error::invalid("messages", "the list is empty; at least 1 message is needed"));
        }
        let (resolved, unknown) = self.resolve(messages, view, request.unknown_items.unwrap_or_default())?;
        let (encoded, dropped) = self.drop_history(&resolved, room)?;
        let vectors: Vec<_> = resolved
            .iter()
            .flat_map(|message| &message.pieces)
            .filter_map(
                |piece| if let ResolvedPiece::Soft(values) = piece { Some(Arc::clone(values)) } else { None },
            )
            .collect();
        let prompt = self.fit("messages", encoded, &vectors, request, room)?;
        Ok(Prompt { unknown, dropped, ..prompt })
    }

    /// Token ids within the vocabulary.
    pub(super) fn check_tokens(&self, field: &str, ids: &[i64]) -> Result<Vec<TokenId>> {
        let vocab = self.vocab as i64;
        let check = |(place, &id): (usize, &i64)| {
            if (0..vocab).contains(&id) {
                Ok(TokenId(id as u32))
            } else {
                Err(Error::invalid(
                    format!("{field}[{place}]"),
                    format!("token id {id} is outside of the model's vocabulary of {vocab} tokens"),
                ))
            }
        };
        ids.iter().enumerate().map(check).collect()
    }

    fn resolve(
        &self,
        messages: &[Message],
        view: Option<&View>,
        unknown_items: UnknownItems,
    ) -> Result<(Vec<Resolved>, usize)> {
        let mut unknown = 0;
        let mut resolved = Vec::with_capacity(messages.len());
        for (m, message) in messages.iter().enumerate() {
            let parts = match &message.content {
                Content::Text(text) => {
                    let pieces = vec![ResolvedPiece::Text(text.clone())];
                    resolved.push(Resolved { role: message.role.clone(), pieces });
                    continue;
                }
                Content::Parts(parts) => parts,
            };
            let mut pieces = Vec::with_capacity(parts.len());
            for (p, part) in parts.iter().enumerate() {
                let field = format!("messages[{m}].content[{p}]");
                let mut span = |id: &str, field: String| match self.span(id, view, field) {
                    Err(Error::Invalid { .. }) if unknown_items == UnknownItems::Skip => {
                        unknown += 1;
                        Ok(None)
                    }
                    result => result.map(Some),
                };
                match part {
                    Part::Text { text } => pieces.push(ResolvedPiece::Text(text.clone())),
                    Part::Item { id } => {
                        pieces.extend(span(id, format!("{field}.id"))?.map(ResolvedPiece::Span));
                    }
                    Part::History { items } => {
                        let mut spans = Vec::with_capacity(items.len());
                        for (i, id) in items.iter().enumerate() {
                            spans.extend(span(id, format!("{field}.items[{i}]"))?);
                        }
                        pieces.push(ResolvedPiece::History(spans));
                    }
                    Part::Embedding { values } => {
                        pieces.push(ResolvedPiece::Soft(self.soft(values, &field)?));
                    }
                }
            }
            resolved.push(Resolved { role: message.role.clone(), pieces });
        }
        Ok((resolved, unknown))
    }

    fn span(&self, id: &str, view: Option<&View>, field: String) -> Result<Vec<TokenId>> {
        let (Some(layout), Some(view)) = (&self.layout, view) else {
            return Err(Error::invalid(
                field,
                format!("item `{id}` needs a catalog, and the engine has none"),
            ));
        };
        let Some(item) = view.find(id) else {
            return Err(Error::invalid(field, format!("unknown item `{id}`")));
        };
        Ok(layout.span(item.item_type(), &item.codes()))
    }

    /// The soft token of the part at `path`.
    fn soft(&self, values: &[f32], path: &str) -> Result<Arc<[f32]>> {
        let Some(adapter) = &self.adapter else {
            let message = "the model has no adapter for embeddings (adapter.0.weight …)";
            return Err(Error::invalid(format!("{path}.values"), message));
        };
        match adapter.apply(values) {
            Ok(row) => Ok(row.into()),
            // The adapter knows the place in the vector.
            Err(Error::Invalid { field, message }) => Err(Error::invalid(format!("{path}.{field}"), message)),
            Err(error) => Err(error),
        }
    }

    /// Encodes, leaving out whole spans from the oldest end of the histories until the prompt fits.
    fn drop_history(&self, messages: &[Resolved], room: &Room) -> Result<(Encoded, usize)> {
        let histories = || {
            messages.iter().flat_map(|message| &message.pieces).filter_map(|piece| match piece {
                ResolvedPiece::History(spans) => Some(spans),
                _ => None,
            })
        };
        let spans: usize = histories().map(Vec::len).sum();
        let mut dropped = 0;
        loop {
            let encoded = self.encode(messages, dropped)?;
            let over = encoded.tokens.len().saturating_sub(room.tokens);
            if over == 0 || dropped == spans {
                return Ok((encoded, dropped));
            }
            let mut freed = 0;
            for span in histories().flatten().skip(dropped) {
                if freed >= over {
                    break;
                }
                freed += span.len();
                dropped += 1;
            }
        }
    }

    fn encode(&self, messages: &[Resolved], mut drop: usize) -> Result<Encoded> {
        let mut chat = Vec::with_capacity(messages.len());
        for message in messages {
            let mut content = Vec::new();
            for piece in &message.pieces {
                match piece {
                    ResolvedPiece::Text(text) => content.push(Piece::Text(text.clone())),
                    ResolvedPiece::Span(tokens) => content.push(Piece::Tokens(tokens.clone())),
                    ResolvedPiece::Soft(_) => content.push(Piece::Soft),
                    ResolvedPiece::History(spans) => {
                        let skipped = drop.min(spans.len());
                        drop -= skipped;
                        content.push(Piece::Tokens(spans[skipped..].concat()));
                    }
                }
            }
            chat.push(ChatMessage { role: message.role.clone(), content });
        }
        self.tokenizer.chat(&chat)
    }

    fn fit(
        &self,
        field: &str,
        mut encoded: Encoded,
        vectors: &[Arc<[f32]>],
        request: &Request,
        room: &Room,
    ) -> Result<Prompt> {
        let len = encoded.tokens.len();
        let over = len.saturating_sub(room.tokens);
        let mut soft: Vec<_> = encoded.soft.iter().copied().zip(vectors.iter().cloned()).collect();
        if over > 0 {
            match request.truncate {
                None => {
                    return Err(Error::invalid(
                        field,
                        format!(
                            "the prompt has {len} tokens and the answer needs {}, together more than the {} that fit; \
                             shorten it, or say with `truncate` which end to cut",
                            room.answer, room.positions
                        ),
                    ));
                }
                Some(Truncate::Start) => {
                    encoded.tokens.drain(..over);
                    soft.retain(|(place, _)| *place >= over);
                    soft.iter_mut().for_each(|(place, _)| *place -= over);
                }
                Some(Truncate::End) => {
                    encoded.tokens.truncate(len - over);
                    soft.retain(|(place, _)| *place < len - over);
                }
            }
        }
        if encoded.tokens.is_empty() {
            return Err(Error::invalid(field, "the prompt is empty; at least 1 token is needed"));
        }
        Ok(Prompt { tokens: encoded.tokens, soft, unknown: 0, dropped: 0, cut: over })
    }
}
