//! pressmark.
pub mod article;
pub mod error;
