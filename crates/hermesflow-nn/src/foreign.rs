//! Files from other programs, and the libraries that decode them: whatever a decoder does with a broken file, even a panic, becomes
//! an error about that file.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// The number of nested decoders that run on this thread.
    static INSIDE: Cell<usize> = const { Cell::new(0) };
}

/// Runs a decoder on this thread and turns a panic into an error.
///
/// # Errors
/// The panic's message, when the decoder panics.
pub fn contained<T>(decode: impl FnOnce() -> T) -> Result<T, String> {
    struct Inside;
    impl Drop for Inside {
        fn drop(&mut self) {
            INSIDE.set(INSIDE.get() - 1);
        }
    }
    INSIDE.set(INSIDE.get() + 1);
    let _inside = Inside;
    // A panic drops everything that the decoder had, and nothing else has access to it.
    catch_unwind(AssertUnwindSafe(decode)).map_err(|panic| format!("its decoder failed: {}", said(&*panic)))
}

/// Runs a decoder that may fail or panic on this thread; either becomes an error.
///
/// # Errors
/// The decoder's own error or its panic's message.
pub fn decoded<T, E: std::fmt::Display>(decode: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    contained(decode)?.map_err(|error| error.to_string())
}

/// Whether this thread runs a decoder ([`contained`]), so that a panic is not a fault of the program and need not be reported.
pub fn is_contained() -> bool {
    INSIDE.get() > 0
}

/// The message of a panic, in one line.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it does not say why").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a file is, and what to do, if it is only a placeholder for the real one (a Git LFS pointer).
pub fn stands_in(bytes: &[u8]) -> Option<&'static str> {
    let pointer = bytes.starts_with(b"version https://git-lfs.github.com/spec/");
    pointer.then_some("a Git LFS pointer, not the file; fetch the file itself, as with `git lfs pull`")
}

/// The text of a file in UTF-8, without the byte order mark that some editors put at its beginning.
///
/// # Errors
/// When the bytes are not UTF-8. The message follows the name of the file.
pub fn text(bytes: Vec<u8>) -> Result<String, &'static str> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err("is a text in UTF-16; save it as UTF-8");
    }
    let mut text = String::from_utf8(bytes).map_err(|_| "is not a text in UTF-8")?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_containment_ends_with_it() {
        let told = contained(|| {
            assert!(is_contained());
            assert!(decoded(|| "x".parse::<u8>()).unwrap_err().contains("invalid digit"));
            assert!(is_contained(), "the outer one goes on");
            panic!("index {}\n out of range", 7)
        });
        assert_eq!(told.map(|(): ()| ()).unwrap_err(), "its decoder failed: index 7 out of range");
        assert!(!is_contained());
        assert_eq!(contained(|| 3), Ok(3));
        assert!(contained(|| std::panic::panic_any(3)).map(|(): ()| ()).unwrap_err().contains("does not say"));
    }

    #[test]
    fn texts_lose_their_byte_order_mark() {
        assert_eq!(text("\u{feff}a".into()), Ok("a".to_string()));
        assert_eq!(text("a\u{feff}".into()), Ok("a\u{feff}".to_string()));
        assert!(text(vec![0xff, 0xfe, b'a', 0]).unwrap_err().contains("UTF-16"));
        assert!(text(vec![0xc3]).unwrap_err().contains("UTF-8"));
    }
}
