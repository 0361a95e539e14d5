//! The tokenizer of a model folder: what was read from its files, and the calls of the room.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer as Inner};

use crate::ids::TokenId;
use crate::text::added::{Added, Matcher};
use crate::text::decoding::DecodeTable;
use crate::text::detokenizer::Detokenizer;
use crate::text::idset::IdSet;
use crate::text::pipeline::Pipeline;
use crate::text::prompt::{Prompts, may_be_mark};
use crate::text::template::{ChatTemplate, TemplateSource};
use crate::text::{ChatMessage, Encoded, Piece};
use crate::{Error, Result};

/// Ids from here on are refused: tables are dense, and no vocabulary comes near.
const MAX_ID: u32 = 1 << 21;

/// A model's tokenizer and chat template. Immutable once shared; every call may come from any thread.
#[derive(Debug)]
pub struct Tokenizer {
    pipeline: Pipeline,
    added: Matcher,
    known: IdSet,
    special: IdSet,
    vocab_size: usize,
    table: Arc<DecodeTable>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    /// What the post-processor puts before and after a prompt without a template.
    around: [Vec<TokenId>; 2],
    template: Option<ChatTemplate>,
    reserved: HashSet<char>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and where they exist `tokenizer_config.json` and `chat_template.jinja`, from a folder.
    ///
    /// The template is that of `chat_template.jinja`, else the configuration's (`chat_template`: a string, or a list whose
    /// entry `default` is taken); none is fine until [`chat`](Tokenizer::chat) is called. `add_bos_token` of the
    /// configuration, where present, overrules the post-processor.
    ///
    /// # Errors
    /// [`Error::File`] naming the file and what is wrong with it.
    pub fn open(dir: &Path) -> Result<Tokenizer> {
        let tokenizer = File::required(dir.join("tokenizer.json"))?;
        let config = File::optional(dir.join("tokenizer_config.json"))?;
        let template = File::optional(dir.join("chat_template.jinja"))?;
        load(&tokenizer, config.as_ref(), template)
    }

    /// Reads a tokenizer from the contents of the files that [`open`](Tokenizer::open) reads.
    ///
    /// # Errors
    /// As [`open`](Tokenizer::open), with bare file names.
    pub fn from_json(tokenizer: &[u8], config: Option<&[u8]>, template: Option<&str>) -> Result<Tokenizer> {
        let file = |name: &str, bytes: &[u8]| File { path: PathBuf::from(name), bytes: bytes.to_vec() };
        let config = config.map(|bytes| file("tokenizer_config.json", bytes));
        let template = template.map(|text| file("chat_template.jinja", text.as_bytes()));
        load(&file("tokenizer.json", tokenizer), config.as_ref(), template)
    }

    /// Declares the layout tokens: text never yields them and they are never shown. Replaces what was declared before.
    ///
    /// Added tokens of the tokenizer file are protected in any case.
    pub fn set_protected(&mut self, layout: impl IntoIterator<Item = TokenId>) {
        let layout: Vec<u32> = layout.into_iter().map(|token| token.0).collect();
        let added = self.added.tokens().iter().map(|token| token.id);
        self.pipeline.protected = IdSet::default().union(added.chain(layout.iter().copied()));
        Arc::make_mut(&mut self.table).hidden = self.special.union(layout);
    }

    /// Whether text never yields this id.
    pub fn is_protected(&self, token: TokenId) -> bool {
        self.pipeline.protected.contains(token.0)
    }

    /// The id of a token's string as the vocabulary writes it.
    pub fn token_to_id(&self, token: &str) -> Option<TokenId> {
        self.pipeline.inner.token_to_id(token).map(TokenId)
    }

    /// A token's string as the vocabulary writes it.
    pub fn id_to_token(&self, token: TokenId) -> Option<String> {
        self.pipeline.inner.id_to_token(token.0)
    }

    /// The bytes that a token adds to a text, those of a token that is never shown included; empty for an id without an entry.
    pub fn token_bytes(&self, token: TokenId) -> &[u8] {
        self.table.bytes(token.0)
    }

    /// The highest id plus one; ids below it may have no entry, see [`has`](Tokenizer::has).
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// All entries in no particular order, added tokens included.
    pub fn vocab(&self) -> impl Iterator<Item = (String, TokenId)> {
        self.pipeline.inner.get_vocab(true).into_iter().map(|(token, id)| (token, TokenId(id)))
    }

    /// Whether the id has an entry. A model's output may be wider than its tokenizer; such ids must be masked.
    pub fn has(&self, token: TokenId) -> bool {
        self.known.contains(token.0)
    }

    /// Whether the tokenizer file calls the token special: never shown.
    pub fn is_special(&self, token: TokenId) -> bool {
        self.special.contains(token.0)
    }

    /// The token that begins a sequence, if the configuration names one.
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    /// The token that ends a sequence, if the configuration names one.
    pub fn eos(&self) -> Option<TokenId> {
        self.eos
    }

    /// Whether the model has a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Encodes messages through the chat template, with the prompt for the answer. No token is added that the template
    /// did not write.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without a template; [`Error::Invalid`] on `messages` or `text` when the template refuses the
    /// messages, a role is unknown, or a character cannot be expressed.
    pub fn chat(&self, messages: &[ChatMessage]) -> Result<Encoded> {
        let no_template = || {
            let looked = "neither chat_template.jinja nor tokenizer_config.json holds one";
            Error::Unsupported(format!("messages need a chat template: {looked}; send a prompt instead"))
        };
        self.prompts().chat(self.template.as_ref().ok_or_else(no_template)?, messages)
    }

    /// Encodes pieces without a template, between the tokens that the post-processor puts around a text (often a BOS).
    ///
    /// # Errors
    /// [`Error::Invalid`] on `text` for a character that cannot be expressed.
    pub fn plain(&self, pieces: &[Piece]) -> Result<Encoded> {
        let mut encoded = self.prompts().plain(pieces)?;
        let [before, after] = &self.around;
        encoded.tokens.splice(0..0, before.iter().copied());
        encoded.tokens.extend(after);
        encoded.soft.iter_mut().for_each(|place| *place += before.len());
        Ok(encoded)
    }

    /// Encodes text alone: no template, nothing around it, no protected token in it.
    ///
    /// # Errors
    /// As [`plain`](Tokenizer::plain).
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>> {
        Ok(self.prompts().plain(&[Piece::Text(text.to_owned())])?.tokens)
    }

    /// Encodes text in which control tokens may be written out. For text of the operator's, **never of a user's**.
    ///
    /// # Errors
    /// As [`plain`](Tokenizer::plain).
    pub fn encode_trusted(&self, text: &str) -> Result<Vec<TokenId>> {
        Ok(self.prompts().trusted(text)?.tokens)
    }

    /// A detokenizer for one sequence.
    pub fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(self.table.clone())
    }

    /// The text of a whole sequence, special and layout tokens left out.
    pub fn decode(&self, tokens: &[TokenId]) -> String {
        let mut stream = self.detokenizer();
        let mut text: String = tokens.iter().filter_map(|&token| stream.push(token)).collect();
        text.extend(stream.finish());
        text
    }

    fn prompts(&self) -> Prompts<'_> {
        Prompts { added: &self.added, pipeline: &self.pipeline, reserved: &self.reserved }
    }
}

/// A file that was read.
struct File {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl File {
    fn required(path: PathBuf) -> Result<File> {
        match std::fs::read(&path) {
            Ok(bytes) => Ok(File { path, bytes }),
            Err(error) => Err(Error::file(path, format!("cannot be read: {error}"))),
        }
    }

    fn optional(path: PathBuf) -> Result<Option<File>> {
        if path.exists() { File::required(path).map(Some) } else { Ok(None) }
    }

    fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T> {
        // The message of serde_json ends with line and column.
        serde_json::from_slice(&self.bytes)
            .map_err(|error| self.error(format!("is not what was expected: {error}")))
    }

    fn error(&self, message: impl Into<String>) -> Error {
        Error::file(&self.path, message)
    }
}

/// The parts of `tokenizer.json` that the library does not give back.
#[derive(Deserialize)]
struct RawTokenizer {
    #[serde(default)]
    added_tokens: Vec<RawAdded>,
    #[serde(default)]
    decoder: Value,
    model: RawModel,
}

#[derive(Deserialize)]
struct RawModel {
    #[serde(default)]
    unk_token: Value,
    #[serde(default)]
    unk_id: Option<usize>,
}

/// An added token, in `tokenizer.json` and in `added_tokens_decoder`.
#[derive(Clone, Deserialize)]
struct RawAdded {
    /// In `added_tokens_decoder` the id is the key instead.
    #[serde(default)]
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    added_tokens_decoder: std::collections::BTreeMap<u32, RawAdded>,
    #[serde(default)]
    bos_token: Value,
    #[serde(default)]
    eos_token: Value,
    #[serde(default)]
    unk_token: Value,
    #[serde(default)]
    pad_token: Value,
    #[serde(default)]
    add_bos_token: Option<bool>,
    #[serde(default)]
    chat_template: Value,
}

fn load(file: &File, config_file: Option<&File>, template: Option<File>) -> Result<Tokenizer> {
    let raw: RawTokenizer = file.json()?;
    let config: Config = config_file.map(File::json).transpose()?.unwrap_or_default();
    let mut inner = guarded(file, || Inner::from_bytes(&file.bytes))?;
    let specials = named_tokens(&config);
    check_ids(file, &inner, raw.added_tokens.iter().map(|token| (token.id, token.content.as_str())))?;
    if let Some(config_file) = config_file {
        complete(&mut inner, &config, config_file)?;
        for (key, content) in &specials[..2] {
            if let Some(content) = content.as_deref().filter(|content| inner.token_to_id(content).is_none()) {
                return Err(config_file.error(format!("{key} {content:?} is not a token of tokenizer.json")));
            }
        }
    }
    let vocab = sorted_vocab(file, &inner)?;
    let AddedTokens { added, normalized, special } = added_tokens(&inner, &specials);
    let unknown = unknown_token(&raw.model, &inner);
    let pipeline =
        Pipeline::new(inner, &normalized, unknown).map_err(|error| file.error(error.to_string()))?;
    // A token whose normalized name differs is found under that name only.
    let plain_added =
        added.iter().filter(|token| pipeline.folded().by_id(token.id).is_none()).cloned().collect();
    let [bos, eos] = [0, 1].map(|place: usize| specials[place].1.clone());
    let id_of = |token: &Option<String>| pipeline.inner.token_to_id(token.as_deref()?).map(TokenId);
    let (bos_id, eos_id) = (id_of(&bos), id_of(&eos));
    let mut reserved: HashSet<char> =
        added.iter().flat_map(|token| token.content.chars()).filter(|&c| may_be_mark(c)).collect();
    let source = template_source(template, config_file, &config.chat_template)?;
    let template = source.map(|(path, source)| {
        reserved.extend(source.chars().filter(|&c| may_be_mark(c)));
        ChatTemplate::compile(TemplateSource { path, source, bos, eos })
    });
    let table = DecodeTable::new(&vocab, &raw.decoder, special.clone())
        .map_err(|error| file.error(error.to_string()))?;
    let mut tokenizer = Tokenizer {
        around: guarded(file, || around(&pipeline.inner))?,
        pipeline,
        added: Matcher::new(plain_added),
        known: IdSet::default().union(vocab.iter().map(|(id, _)| *id)),
        special,
        vocab_size: vocab.last().map_or(0, |(id, _)| *id as usize + 1),
        table: Arc::new(table),
        bos: bos_id,
        eos: eos_id,
        template: template.transpose()?,
        reserved,
    };
    tokenizer.force_bos(config.add_bos_token);
    tokenizer.set_protected([]);
    Ok(tokenizer)
}

impl Tokenizer {
    /// Makes the tokens before a prompt agree with `add_bos_token`, where the configuration says so.
    fn force_bos(&mut self, wanted: Option<bool>) {
        let Some((wanted, bos)) = wanted.zip(self.bos) else { return };
        let before = &mut self.around[0];
        match (wanted, before.first() == Some(&bos)) {
            (true, false) => before.insert(0, bos),
            (false, true) => drop(before.remove(0)),
            _ => {}
        }
    }
}

/// Runs the library's reader, whose bugs on crafted files must not end the process.
fn guarded<T>(file: &File, read: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(result) => result.map_err(|error| file.error(format!("is not a usable tokenizer: {error}"))),
        Err(_) => Err(file.error("is not a usable tokenizer: reading it failed an internal check")),
    }
}

/// Added tokens, those of them to look for in normalized text, and the ids that are never shown.
struct AddedTokens {
    added: Vec<Added>,
    normalized: Vec<Added>,
    special: IdSet,
}

fn added_tokens(inner: &Inner, specials: &[(&str, Option<String>)]) -> AddedTokens {
    let (mut added, mut normalized, mut special) = (Vec::new(), Vec::new(), IdSet::default());
    for (id, token) in inner.get_added_tokens_decoder() {
        let AddedToken { content, single_word, lstrip, rstrip, .. } = token;
        if token.special || specials.iter().any(|(_, named)| named.as_deref() == Some(&content)) {
            special.insert(id);
        }
        let entry = Added { id, content, single_word, lstrip, rstrip };
        if token.normalized {
            normalized.push(entry.clone());
        }
        added.push(entry);
    }
    AddedTokens { added, normalized, special }
}

fn check_ids<'a>(file: &File, inner: &Inner, declared: impl Iterator<Item = (u32, &'a str)>) -> Result<()> {
    for (id, content) in declared.filter(|(_, content)| !content.is_empty()) {
        let found = inner.token_to_id(content);
        if found != Some(id) {
            let found = found.map_or("none".to_owned(), |found| found.to_string());
            return Err(file.error(format!(
                "added token {content:?} is declared as id {id} but its id becomes {found}"
            )));
        }
    }
    Ok(())
}

/// Adds the tokens that only the configuration declares, as transformers does.
fn complete(inner: &mut Inner, config: &Config, file: &File) -> Result<()> {
    let added = inner.get_added_tokens_decoder();
    let known: HashSet<&str> = added.values().map(|token| token.content.as_str()).collect();
    let missing =
        config.added_tokens_decoder.values().filter(|token| !known.contains(token.content.as_str()));
    let mut tokens: Vec<AddedToken> = missing
        .map(|token| AddedToken {
            content: token.content.clone(),
            single_word: token.single_word,
            lstrip: token.lstrip,
            rstrip: token.rstrip,
            normalized: token.normalized,
            special: token.special,
        })
        .collect();
    for (_, content) in named_tokens(config) {
        // Only strings that are tokens already: a new id would have no row in the model.
        if let Some(content) = content
            && !known.contains(content.as_str())
            && tokens.iter().all(|token| token.content != content)
            && inner.token_to_id(&content).is_some()
        {
            tokens.push(AddedToken::from(content, true));
        }
    }
    inner.add_tokens(tokens).map_err(|error| file.error(format!("added_tokens_decoder: {error}")))?;
    let declared = config.added_tokens_decoder.iter();
    check_ids(file, inner, declared.map(|(id, token)| (*id, token.content.as_str())))
}

/// The tokens that the configuration names: the beginning and the end of a sequence first.
fn named_tokens(config: &Config) -> [(&'static str, Option<String>); 4] {
    [
        ("bos_token", &config.bos_token),
        ("eos_token", &config.eos_token),
        ("unk_token", &config.unk_token),
        ("pad_token", &config.pad_token),
    ]
    .map(|(key, value)| {
        let text = value.as_str().or_else(|| value.get("content")?.as_str());
        (key, text.filter(|text| !text.is_empty()).map(str::to_owned))
    })
}

fn unknown_token(model: &RawModel, inner: &Inner) -> Option<String> {
    let named = model.unk_token.as_str().map(str::to_owned);
    named.or_else(|| inner.id_to_token(u32::try_from(model.unk_id?).ok()?))
}

/// Every entry with the string that the decoder reads, by id.
fn sorted_vocab(file: &File, inner: &Inner) -> Result<Vec<(u32, String)>> {
    let mut vocab: Vec<(u32, String)> =
        inner.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
    vocab.sort_unstable();
    vocab.dedup_by_key(|(id, _)| *id);
    if let Some((id, token)) = vocab.last().filter(|(id, _)| *id >= MAX_ID) {
        return Err(file.error(format!("token {token:?} has id {id}; ids must be below {MAX_ID}")));
    }
    for (id, token) in &mut vocab {
        if let Some(added) = inner.get_added_vocabulary().simple_id_to_token(*id) {
            *token = added;
        }
    }
    Ok(vocab)
}

/// What the post-processor puts before and after a text.
fn around(inner: &Inner) -> tokenizers::Result<[Vec<TokenId>; 2]> {
    let bare = inner.encode_fast("a", false)?;
    let full = inner.encode_fast("a", true)?;
    let (bare, full) = (bare.get_ids(), full.get_ids());
    let start =
        (0..=full.len().saturating_sub(bare.len())).find(|&at| full[at..].starts_with(bare)).unwrap_or(0);
    let ids = |part: &[u32]| part.iter().map(|&id| TokenId(id)).collect();
    Ok([ids(&full[..start]), ids(full.get(start + bare.len()..).unwrap_or_default())])
}

/// The template's file and text, if there is one.
fn template_source(
    template: Option<File>,
    config_file: Option<&File>,
    in_config: &Value,
) -> Result<Option<(PathBuf, String)>> {
    if let Some(file) = template {
        let text = String::from_utf8(file.bytes)
            .map_err(|error| Error::file(&file.path, format!("is not UTF-8: {error}")))?;
        return Ok(Some((file.path, text)));
    }
    let Some(file) = config_file.filter(|_| !in_config.is_null()) else { return Ok(None) };
    let named = |list: &Vec<Value>| {
        list.iter().find(|entry| entry["name"] == "default").map(|e| e["template"].clone())
    };
    let source = match in_config {
        Value::Array(list) => named(list).unwrap_or_default(),
        Value::Object(map) => map.get("default").cloned().unwrap_or_default(),
        other => other.clone(),
    };
    match source {
        Value::String(source) => Ok(Some((file.path.clone(), source))),
        _ => Err(file.error("chat_template is neither a string nor a list with an entry named \"default\"")),
    }
}
