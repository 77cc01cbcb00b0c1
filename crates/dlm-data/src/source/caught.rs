//! The readers of Arrow IPC believe what a file says of its buffers, and panic where that goes beyond its end.

use datafusion::arrow::error::ArrowError;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What `read` gives; an error where it panics.
pub(super) fn caught<T>(read: impl FnOnce() -> Result<T, ArrowError>) -> Result<T, ArrowError> {
    // A reader that has panicked is dropped.
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(damage()))
}

/// The items up to a panic, and an error in its place.
pub(super) fn caught_items<T>(
    mut items: impl Iterator<Item = Result<T, ArrowError>>,
) -> impl Iterator<Item = Result<T, ArrowError>> {
    let mut ended = false;
    std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let item = catch_unwind(AssertUnwindSafe(|| items.next()));
        ended = item.is_err();
        item.unwrap_or_else(|_| Some(Err(damage())))
    })
}

fn damage() -> ArrowError {
    ArrowError::IpcError("what it says of its buffers does not fit what is in it".to_owned())
}
