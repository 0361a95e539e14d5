//! The catalog: which items exist, how their Semantic IDs are spelled, and which of them are alive for a request.

mod array;
mod bitmap;
mod builder;
mod columns;
mod detect;
mod filter;
mod id_table;
mod index;
mod intern;
mod items;
mod layout;
mod live;
mod mask;
mod merge;
mod order;
mod popularity;
mod predicate;
mod snapshot;
pub mod source;
mod strings;
pub mod synthetic;
mod view;

pub use array::Array;
pub use bitmap::Bitmap;
pub use builder::CatalogBuilder;
pub use columns::{Column, ColumnValues, Labels};
pub use filter::{CacheLimits, CacheUse, Filter, FilterCache, FilterLimits, FilterSet};
pub use index::{Child, Children, Entries, MAX_CODES, MAX_LEVELS, Node, TypeIndex};
pub use items::{Catalog, Item, ItemRecord};
pub use layout::{Layout, LayoutSpec, LevelTokens, Place, TypeLayout, TypeSpec};
pub use live::{Change, DenyList, DenyWatcher, LiveCatalog, LiveLimits, LiveStats};
#[cfg(any(feature = "cuda", feature = "emulated"))]
pub(crate) use mask::MaskBase;
pub use mask::{Mask, MaskPart};
pub use predicate::Predicate;
pub use snapshot::{SectionInfo, SectionKind, SectionPart, Verified};
pub use source::{OnError, Progress, Report, read_jsonl, read_jsonl_report};
pub use strings::{Ends, Strings};
pub use view::{Alive, Found, View};
