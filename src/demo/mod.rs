//! The built-in demonstration: a small model that learnt a catalog of 1,260 real books, films and albums, part of the program.
//!
//! `training/recipe.py` makes the folder `model/` beside this file from `training/catalog/`; it is an ordinary Hugging Face folder and can be opened
//! as one. What the model is worth stands in `benches/results/demo.md`.

use std::sync::Arc;

use crate::catalog::source::item_from_fields;
use crate::catalog::{Catalog, CatalogBuilder, Layout, LayoutSpec};
use crate::engine::{Engine, EngineBuilder};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::text::Tokenizer;

const CONFIG: &str = include_str!("model/config.json");
const GENERATION: &str = include_str!("model/generation_config.json");
const TOKENIZER: &[u8] = include_bytes!("model/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("model/tokenizer_config.json");
const TEMPLATE: &str = include_str!("model/chat_template.jinja");
const LAYOUT: &str = include_str!("model/sid_layout.json");
const CATALOG: &str = include_str!("model/catalog.jsonl");
static WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("model/model.safetensors"));

/// So that tensors are used where they lie, as in a mapped file.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

/// An engine of the demonstration, catalog included.
///
/// # Errors
/// None, unless this crate is broken.
pub fn builder() -> Result<EngineBuilder> {
    let model = Model::from_static("sidereal-demo", CONFIG, GENERATION, &WEIGHTS.0)?;
    let tokenizer = Tokenizer::from_json(TOKENIZER, Some(TOKENIZER_CONFIG), Some(TEMPLATE))?;
    let spec: LayoutSpec =
        serde_json::from_str(LAYOUT).map_err(|error| Error::file("sid_layout.json", error.to_string()))?;
    let layout = Layout::resolve(&spec, |token| tokenizer.token_to_id(token))?;
    let catalog = catalog(&layout)?;
    Ok(Engine::builder(model, tokenizer).layout(layout).catalog(Arc::new(catalog)))
}

fn catalog(layout: &Layout) -> Result<Catalog> {
    let mut catalog = CatalogBuilder::new(&layout.specs());
    for (number, line) in CATALOG.lines().enumerate() {
        let bad = |message: String| Error::file("catalog.jsonl", format!("line {}: {message}", number + 1));
        let fields = serde_json::from_str(line).map_err(|error| bad(error.to_string()))?;
        catalog.push(item_from_fields(fields).map_err(|row| bad(row.message))?)?;
    }
    catalog.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demonstration_opens_and_is_small() {
        let builder = builder().unwrap();
        assert!(WEIGHTS.0.len() <= 8_000_000, "{} bytes", WEIGHTS.0.len());
        // Used where they lie, not copied.
        let first = builder.model_ref().weights.embed.bytes().as_ptr();
        assert!(WEIGHTS.0.as_ptr_range().contains(&first));
        let catalog = builder.catalog_ref().unwrap();
        assert_eq!(catalog.types(), ["book", "film", "album"]);
        assert_eq!(catalog.len(), 1260);
    }
}
