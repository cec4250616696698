//! Panics of an engine, which are answered with errors. sled panics on files that are damaged.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread would be caught and answered, so that nobody has to be told of it.
#[must_use]
pub fn panic_is_expected() -> bool {
    EXPECTED.get()
}

/// Runs something of an engine's and returns its panic, if it does.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    let before = EXPECTED.replace(true);
    // What is left of the engine is dropped by the caller, or its own locks tell of the panic.
    let result = catch_unwind(AssertUnwindSafe(work));
    EXPECTED.set(before);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_expected_only_where_it_is_caught() {
        assert!(!panic_is_expected());
        assert_eq!(caught(panic_is_expected).ok(), Some(true));
        assert!(caught(|| std::panic::resume_unwind(Box::new(7))).is_err());
        assert!(!panic_is_expected());
    }
}
