//! A progress bar for uploads and downloads. Nothing is drawn if stderr is not a terminal.

use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler, UploadEvent};
use indicatif::{ProgressBar, ProgressStyle};

/// The bar of one transfer. It disappears when the transfer ends, also after an error.
pub struct Bar(ProgressBar);

impl Bar {
    /// `name` is shown before the bar.
    pub fn new(name: &str) -> Self {
        let style = ProgressStyle::with_template(
            "{prefix} [{bar:12}] {bytes}/{total_bytes} [{elapsed} < {eta}] {wide_msg}",
        )
        .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(0).with_style(style.progress_chars("=> "));
        Bar(bar.with_prefix(name.to_owned()))
    }
}

impl ProgressHandler for Bar {
    fn on_progress(&self, event: &ProgressEvent) {
        match event {
            ProgressEvent::Upload(UploadEvent::Start { total_bytes, .. })
            | ProgressEvent::Download(DownloadEvent::Start { total_bytes, .. }) => {
                self.0.set_length(*total_bytes);
            }
            ProgressEvent::Upload(UploadEvent::Progress { bytes_completed, .. })
            | ProgressEvent::Download(DownloadEvent::AggregateProgress {
                bytes_completed, ..
            }) => self.0.set_position(*bytes_completed),
            ProgressEvent::Download(DownloadEvent::Progress { files }) => {
                // Files are fetched one at a time.
                if let Some(file) = files.last() {
                    self.0.set_position(file.bytes_completed);
                }
            }
            ProgressEvent::Upload(UploadEvent::Committing) => self.0.set_message("committing"),
            ProgressEvent::Upload(UploadEvent::Complete)
            | ProgressEvent::Download(DownloadEvent::Complete) => self.0.finish_and_clear(),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
