//! From files to an engine: model folder, layout, catalog.

use std::path::Path;
use std::sync::Arc;

use super::builder::EngineBuilder;
use super::handle::Engine;
use crate::catalog::source::{Mapping, Progress, Sources};
use crate::catalog::{Catalog, CatalogBuilder, Layout, LayoutSpec, synthetic};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::tiny::{DemoSpec, demo};
use crate::text::{Tokenizer, tiny};

impl EngineBuilder {
    /// Opens a Hugging Face folder: weights (mapped, not read), tokenizer, chat template, and the SID layout if it has one:
    /// `sid_layout.json`, else the tokenizer's own tokens by their names.
    ///
    /// # Errors
    /// [`Error::File`] with file and place; [`Error::Unsupported`] for architectures that are not served.
    pub fn open(folder: impl AsRef<Path>) -> Result<EngineBuilder> {
        let folder = folder.as_ref();
        let model = Model::open(folder)?;
        let tokenizer = Tokenizer::open(folder)?;
        let written = folder.join("sid_layout.json");
        let (spec, file) = if written.exists() {
            (Some(LayoutSpec::read(&written)?), written)
        } else {
            let vocab: Vec<_> = tokenizer.vocab().collect();
            let file = folder.join("tokenizer.json");
            let found = Layout::detect(vocab.iter().map(|(token, id)| (token.as_str(), *id)));
            (found.map_err(|error| Error::file(&file, error.to_string()))?, file)
        };
        let resolve = |spec| {
            Layout::resolve(&spec, |token| tokenizer.token_to_id(token))
                .map_err(|error| Error::file(&file, error.to_string()))
        };
        let layout = spec.map(resolve).transpose()?;
        let builder = Engine::builder(model, tokenizer);
        Ok(match layout {
            Some(layout) => builder.layout(layout),
            None => builder,
        })
    }

    /// Takes the SID layout from a file instead.
    ///
    /// # Errors
    /// [`Error::File`] with the place, also if the tokenizer lacks one of its tokens.
    pub fn layout_file(self, path: impl AsRef<Path>) -> Result<EngineBuilder> {
        let path = path.as_ref();
        let spec = LayoutSpec::read(path)?;
        let layout = Layout::resolve(&spec, |token| self.tokenizer_ref().token_to_id(token))
            .map_err(|error| Error::file(path, error.to_string()))?;
        Ok(self.layout(layout))
    }

    /// Takes a catalog from a file: a snapshot, which is verified and mapped, or a source that is read into memory with the types of the layout.
    /// `progress` is told bytes done and in all.
    ///
    /// # Errors
    /// [`Error::File`] with file and place; [`Error::Unsupported`] if the model has no SID layout.
    pub fn catalog_file(self, path: impl AsRef<Path>, progress: Progress<'_>) -> Result<EngineBuilder> {
        let Some(layout) = self.layout_ref() else {
            return Err(Error::Unsupported(
                "a catalog needs a SID layout: the model folder has no sid_layout.json, and its tokenizer no tokens \
                 that spell SIDs; name one with --layout"
                    .to_owned(),
            ));
        };
        let path = path.as_ref();
        let catalog = match Catalog::is_snapshot(path) {
            true => Catalog::load(path, progress)?,
            false => Sources::new().file(path, Mapping::default()).read(&layout.specs(), progress)?.0,
        };
        Ok(self.catalog(Arc::new(catalog)))
    }

    /// A tiny model with random weights and a synthetic catalog of 300 items in three types, for tests: everything works, and
    /// nothing means anything. [`crate::demo::builder`] has a model that learnt something.
    ///
    /// # Errors
    /// None, unless this crate is broken.
    pub fn tiny() -> Result<EngineBuilder> {
        let spec = synthetic::tiny_layout();
        let mut names = Vec::new();
        for kind in &spec.types {
            for (level, &codes) in kind.levels.iter().enumerate() {
                let name = |code: usize| {
                    kind.token.replace("{level}", &level.to_string()).replace("{code}", &code.to_string())
                };
                names.extend((0..codes).map(name));
            }
        }
        let tokenizer = Tokenizer::from_json(
            tiny::tokenizer_json(&names).as_bytes(),
            Some(tiny::tokenizer_config_json().as_bytes()),
            None,
        )?;
        let layout = Layout::resolve(&spec, |token| tokenizer.token_to_id(token))?;
        let mut catalog = CatalogBuilder::new(&layout.specs());
        synthetic::tiny_records().into_iter().try_for_each(|record| catalog.push(record))?;
        let eos = tokenizer
            .token_to_id("<|im_end|>")
            .ok_or_else(|| Error::Unsupported("the tiny tokenizer has no end token".to_owned()))?;
        let model = demo(&DemoSpec::new(tokenizer.vocab_size(), eos))?;
        Ok(Engine::builder(model, tokenizer).layout(layout).catalog(Arc::new(catalog.build()?)))
    }
}
