//! A thread that makes windows before they are asked for, a fixed number of them.

use crate::{
    error::{DataError, Result},
    reader::{Window, WindowMaker},
};
use std::{
    sync::mpsc::{Receiver, sync_channel},
    thread::{self, JoinHandle},
};

/// The thread, and where its windows arrive. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct ReadAhead {
    windows: Option<Receiver<Result<Window>>>,
    thread: Option<JoinHandle<()>>,
}

impl ReadAhead {
    /// Begins to make windows, at most `count` (at least 1) more than were asked for. After one that fails there is no other.
    pub(crate) fn start(mut maker: WindowMaker, count: usize) -> Result<Self> {
        // The thread itself holds one window while it waits for a place.
        let (sender, windows) = sync_channel(count.saturating_sub(1));
        let work = move || {
            loop {
                let window = maker.next_window();
                let is_last = window.is_err();
                if sender.send(window).is_err() || is_last {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("read ahead".to_owned()).spawn(work);
        let thread =
            thread.map_err(|error| DataError::Invalid(format!("cannot start a thread to read ahead: {error}")))?;
        Ok(Self { windows: Some(windows), thread: Some(thread) })
    }

    /// Waits for the next window.
    pub(crate) fn next_window(&mut self) -> Result<Window> {
        let received = self.windows.as_ref().and_then(|windows| windows.recv().ok());
        received.unwrap_or_else(|| {
            // The thread ends without a word only when it panics, which is then a panic here.
            if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
                std::panic::resume_unwind(panic);
            }
            Err(DataError::Invalid("the thread that reads ahead has ended".to_owned()))
        })
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.windows = None; // a thread that waits to send a window then ends
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // whatever it failed with, nobody asked for it
        }
    }
}
