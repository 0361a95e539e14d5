//! The catalog: which items exist, how their Semantic IDs are spelled, and which of them are alive for a request.

mod array;
mod bitmap;
mod columns;
mod detect;
mod index;
mod items;
mod layout;
mod mask;
mod order;
mod predicate;
pub mod source;
pub mod synthetic;

pub use array::Array;
pub use bitmap::Bitmap;
pub use index::{Child, Children, Entries, MAX_CODES, MAX_LEVELS, Node, TypeIndex};
pub use items::{Catalog, CatalogBuilder, Item, ItemRecord};
pub use layout::{Layout, LayoutSpec, LevelTokens, Place, TypeLayout, TypeSpec};
#[cfg(any(feature = "cuda", feature = "emulated"))]
pub(crate) use mask::MaskBase;
pub use mask::{Mask, MaskCursor};
pub use predicate::Predicate;
pub use source::{OnError, Progress, Report, read_jsonl, read_jsonl_report};
