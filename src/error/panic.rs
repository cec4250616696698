//! Panics of code that is not ours, which are answered with errors: sled panics on files that are
//! damaged, and so may a reader of foreign files.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread would be caught and answered, so that nobody has to be told of it.
#[must_use]
pub fn is_expected() -> bool {
    EXPECTED.get()
}

/// Runs code that is not ours, and returns its panic if it does.
///
/// # Errors
/// What it panicked with.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    let before = EXPECTED.replace(true);
    // What is left behind is dropped by the caller, or its own locks tell of the panic.
    let result = catch_unwind(AssertUnwindSafe(work));
    EXPECTED.set(before);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_is_expected_only_where_it_is_caught() {
        assert!(!is_expected());
        assert_eq!(caught(is_expected).ok(), Some(true));
        assert!(caught(|| std::panic::resume_unwind(Box::new(7))).is_err());
        assert!(!is_expected());
    }
}
