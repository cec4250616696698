//! pressmark.
pub mod archive;
pub mod article;
pub mod error;
pub mod key;
pub mod metrics;
pub mod record;
pub mod store;
