//! Prompts: typed pieces, with or without the chat template, to token ids.
//!
//! A chat template is a program that mixes our text with the user's, and afterwards control tokens must be found in what it
//! wrote but not in what the user wrote. So user text goes in with *guards*: noncharacters that occur nowhere in the
//! request, through which no control token matches and which are taken out before encoding. Items and soft tokens
//! go in as *slots*, a number between two other such marks.
//!
//! Every message is rendered twice. In the *fenced* rendering a guard stands at every character of the user's (white space
//! apart, so that trimming works): whatever the template does to the text - cut, replace, change case, put it next to
//! its own brackets - no token can be made of it. In the *light* one guards stand only inside strings that are control
//! tokens as written, so a template may look into the text (`'/brief' in content`). If the light rendering shows exactly
//! the control tokens of the fenced one it is used; if not, the fenced one is.

use std::collections::HashSet;

use crate::ids::TokenId;
use crate::text::added::{Matcher, is_word};
use crate::text::pipeline::{Cut, Pipeline, SOFT, Segments};
use crate::text::template::{ChatTemplate, Turn};
use crate::text::{ChatMessage, Encoded, Piece};
use crate::{Error, Result};

/// Roles a message may have; some templates build a control token from the role's name.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// Whether a character may be chosen as a mark: a noncharacter, or one of the private use plane 15.
pub(super) fn may_be_mark(c: char) -> bool {
    matches!(c, '\u{FDD0}'..='\u{FDEF}' | '\u{F0000}'..='\u{FFFFD}')
}

/// What rendering and encoding a prompt needs to know.
pub(super) struct Prompts<'a> {
    /// Added tokens to find in what the template wrote.
    pub added: &'a Matcher,
    /// Encodes text.
    pub pipeline: &'a Pipeline,
    /// Characters that may not be marks: those of the template and of token strings.
    pub reserved: &'a HashSet<char>,
}

/// Two characters that occur nowhere in the request.
#[derive(Clone, Copy, Debug)]
struct Marks {
    guard: char,
    slot: char,
}

/// What a slot stands for.
#[derive(Debug)]
enum Slot {
    Tokens(Vec<u32>),
    Soft,
    /// A character of the user's that is an added token all by itself, so that no guard fits inside.
    Literal(char),
}

impl Prompts<'_> {
    /// Renders messages through the template and encodes the result.
    pub fn chat(&self, template: &ChatTemplate, messages: &[ChatMessage]) -> Result<Encoded> {
        for (place, message) in messages.iter().enumerate() {
            if !ROLES.contains(&message.role.as_str()) {
                let message = format!("{:?} is none of {}", message.role, ROLES.join(", "));
                return Err(Error::invalid(format!("messages[{place}].role"), message));
            }
        }
        let marks = self.marks(messages.iter().flat_map(|message| &message.content))?;
        let mut slots = Vec::new();
        let (mut light, mut fenced) = (Vec::new(), Vec::new());
        for message in messages {
            let mut contents = [String::new(), String::new()];
            for piece in joined(&message.content) {
                self.write(&piece, marks, &mut slots, &mut contents);
            }
            let [content, fenced_content] = contents;
            light.push(Turn { role: &message.role, content });
            fenced.push(Turn { role: &message.role, content: fenced_content });
        }
        let light = self.read(&template.render(&light)?, marks, &slots)?;
        let fenced = self.read(&template.render(&fenced)?, marks, &slots)?;
        self.finish(self.choose(light, fenced))
    }

    /// Encodes pieces as they are.
    pub fn plain(&self, pieces: &[Piece]) -> Result<Encoded> {
        let mut segments = Segments::default();
        for piece in joined(pieces) {
            match piece {
                Piece::Text(text) => segments.text.push_str(&text),
                Piece::Tokens(tokens) => segments.place(raw(&tokens)),
                Piece::Soft => segments.place(vec![SOFT]),
            }
        }
        self.finish(segments)
    }

    /// Encodes text that may name control tokens.
    pub fn trusted(&self, text: &str) -> Result<Encoded> {
        let marks = self.marks(std::iter::once(&Piece::Text(text.to_owned())))?;
        self.finish(self.read(text, marks, &[])?)
    }

    /// The light rendering if user text did not change which control tokens there are, else the fenced one.
    fn choose(&self, light: Segments, fenced: Segments) -> Segments {
        let tokens =
            |segments: &Segments| segments.cuts.iter().flat_map(|cut| cut.ids.clone()).collect::<Vec<_>>();
        // Names that are found only after normalization are not seen here, and only the fenced rendering guards them.
        let trusted = self.pipeline.folded().is_empty()
            && light.text != fenced.text
            && tokens(&light) == tokens(&fenced);
        if trusted { light } else { fenced }
    }

    fn finish(&self, segments: Segments) -> Result<Encoded> {
        let ids = self.pipeline.encode(&segments)?;
        let soft = ids.iter().enumerate().filter(|&(_, &id)| id == SOFT).map(|(place, _)| place).collect();
        let tokens = ids.into_iter().map(|id| TokenId(if id == SOFT { 0 } else { id })).collect();
        Ok(Encoded { tokens, soft })
    }

    fn marks<'p>(&self, pieces: impl Iterator<Item = &'p Piece>) -> Result<Marks> {
        let mut taken = HashSet::new();
        for piece in pieces {
            if let Piece::Text(text) = piece {
                taken.extend(text.chars().filter(|&c| may_be_mark(c)));
            }
        }
        let mut free = ('\u{FDD0}'..='\u{FDEF}')
            .chain('\u{F0000}'..='\u{FFFFD}')
            .filter(|c| !taken.contains(c) && !self.reserved.contains(c));
        match (free.next(), free.next()) {
            (Some(guard), Some(slot)) => Ok(Marks { guard, slot }),
            _ => Err(Error::invalid(
                "messages",
                "the text uses every noncharacter and all of private use plane 15",
            )),
        }
    }

    /// Appends a piece to the light and the fenced content.
    fn write(&self, piece: &Piece, marks: Marks, slots: &mut Vec<Slot>, contents: &mut [String; 2]) {
        let text = match piece {
            Piece::Text(text) => text,
            Piece::Tokens(tokens) => {
                return write_slot(Slot::Tokens(raw(tokens)), marks, slots, contents);
            }
            Piece::Soft => return write_slot(Slot::Soft, marks, slots, contents),
        };
        let mut in_fence = false;
        for (at, c) in text.char_indices() {
            // Checked apart from the longest: of "ab" and "a" both tokens, a guard after the "a" breaks only the first.
            if self.added.has(&text[at..at + c.len_utf8()]) {
                write_slot(Slot::Literal(c), marks, slots, contents);
                continue;
            }
            contents[0].push(c);
            if self.added.longest_at(text, at).is_some() {
                contents[0].push(marks.guard);
            }
            if !c.is_whitespace() || in_fence {
                contents[1].push(marks.guard);
            }
            in_fence = !c.is_whitespace();
            contents[1].push(c);
        }
        if in_fence {
            contents[1].push(marks.guard);
        }
    }

    /// Reads what a template wrote: takes the marks out, notes what they stood for and finds the control tokens.
    fn read(&self, rendered: &str, marks: Marks, slots: &[Slot]) -> Result<Segments> {
        let mut out = Segments { guards: Some(Vec::new()), ..Segments::default() };
        let mut softs = 0;
        let mut rest = rendered;
        while let Some(c) = rest.chars().next() {
            if c == marks.guard {
                out.guard();
                rest = &rest[c.len_utf8()..];
            } else if c == marks.slot {
                let (slot, after) = self.slot(rest, marks, slots)?;
                rest = after;
                match &slots[slot] {
                    Slot::Tokens(ids) => rest = self.place(&mut out, ids, rest),
                    Slot::Literal(literal) => {
                        out.guard();
                        out.text.push(*literal);
                        out.guard();
                    }
                    Slot::Soft => {
                        let earlier = slots[..slot].iter().filter(|slot| matches!(slot, Slot::Soft)).count();
                        if earlier != softs {
                            return Err(Error::invalid(
                                "messages",
                                "the chat template moves or repeats an embedding",
                            ));
                        }
                        softs += 1;
                        out.place(vec![SOFT]);
                    }
                }
            } else if let Some(token) = self.added.longest_at(rendered, rendered.len() - rest.len()) {
                let after = &rest[token.content.len()..];
                let touched = token.single_word
                    && (touches(out.text.chars().next_back()) || touches(next(after, marks)));
                if touched {
                    out.text.push_str(&token.content);
                    rest = after;
                } else {
                    rest = self.place(&mut out, &[token.id], after);
                }
            } else {
                out.text.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
        if softs != slots.iter().filter(|slot| matches!(slot, Slot::Soft)).count() {
            return Err(Error::invalid("messages", "the chat template leaves out an embedding"));
        }
        Ok(out)
    }

    /// The slot that `rest` begins with, and what follows it.
    fn slot<'r>(&self, rest: &'r str, marks: Marks, slots: &[Slot]) -> Result<(usize, &'r str)> {
        let inside = &rest[marks.slot.len_utf8()..];
        let read = inside.split_once(marks.slot).and_then(|(number, after)| {
            let number: usize = number.parse().ok()?;
            (number < slots.len()).then_some((number, after))
        });
        read.ok_or_else(|| Error::invalid("messages", "the chat template cuts through an item"))
    }

    /// Places tokens, which may swallow the white space before and after them; returns what follows.
    fn place<'r>(&self, out: &mut Segments, ids: &[u32], rest: &'r str) -> &'r str {
        let flags = |id: Option<&u32>| id.and_then(|&id| self.added.by_id(id));
        if ids.is_empty() {
            return rest;
        }
        let lstrip = flags(ids.first()).is_some_and(|token| token.lstrip);
        let rstrip = flags(ids.last()).is_some_and(|token| token.rstrip);
        out.place(ids.to_vec());
        if lstrip {
            out.swallow_left();
        }
        if rstrip { rest.trim_start() } else { rest }
    }
}

impl Segments {
    /// Appends tokens; one filler character keeps their place in the text.
    fn place(&mut self, ids: Vec<u32>) {
        let start = self.text.len();
        if !ids.is_empty() {
            self.text.push('\u{FDD0}');
            self.cuts.push(Cut { start, end: self.text.len(), ids });
        }
    }

    /// Gives the white space before the last cut to that cut.
    fn swallow_left(&mut self) {
        let before = if let [.., before, _] = self.cuts.as_slice() { before.end } else { 0 };
        if let Some(cut) = self.cuts.last_mut() {
            cut.start = before + self.text[before..cut.start].trim_end().len();
        }
    }

    fn guard(&mut self) {
        let place = self.text.len();
        if let Some(guards) = &mut self.guards {
            guards.push(place);
        }
    }
}

/// Appends the same slot to both contents.
fn write_slot(slot: Slot, marks: Marks, slots: &mut Vec<Slot>, contents: &mut [String; 2]) {
    let written = format!("{}{}{}", marks.slot, slots.len(), marks.slot);
    slots.push(slot);
    contents.iter_mut().for_each(|content| content.push_str(&written));
}

/// Pieces with neighbouring texts and neighbouring tokens joined.
fn joined(pieces: &[Piece]) -> Vec<Piece> {
    let mut out: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match (out.last_mut(), piece) {
            (Some(Piece::Text(before)), Piece::Text(text)) => before.push_str(text),
            (Some(Piece::Tokens(before)), Piece::Tokens(tokens)) => before.extend(tokens),
            _ => out.push(piece.clone()),
        }
    }
    out
}

/// Bare ids; one that is no token's in any vocabulary stays that and is not taken for a soft token.
fn raw(tokens: &[TokenId]) -> Vec<u32> {
    tokens.iter().map(|token| token.0.min(SOFT - 1)).collect()
}

fn touches(c: Option<char>) -> bool {
    c.is_some_and(is_word)
}

/// The next character that is not a guard.
fn next(text: &str, marks: Marks) -> Option<char> {
    text.chars().find(|&c| c != marks.guard)
}
