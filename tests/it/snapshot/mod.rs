//! Catalogs as columns and as files, against the records they were made from.

mod columns;
mod damage;
mod file;
mod image;
mod merge;
mod random;
