//! Files that articles come from and go to. Reads and writes no archive.

pub mod markdown;
