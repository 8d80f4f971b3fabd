//! The options of `plan` and `sweep` that describe hardware.

use clap::Args;

use super::quantity;
use crate::plan::forecast::Hardware;

/// The hardware that a run is planned for.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Hardware to plan for")]
pub struct HardwareArguments {
    /// Ranks that share a run
    #[arg(long, value_name = "N", value_parser = quantity::ranks)]
    pub ranks: Option<usize>,
    /// Memory of the device of one rank, such as 80GB
    #[arg(long, value_name = "SIZE", value_parser = quantity::bytes)]
    device_memory: Option<f64>,
    /// Peak operations a second of the device of one rank, such as 312e12 or 312T
    #[arg(long, value_name = "RATE", value_parser = quantity::operations)]
    flops: Option<f64>,
    /// Share of the peak that training reaches [default: 0.4]
    #[arg(long, value_name = "SHARE", value_parser = quantity::share)]
    mfu: Option<f64>,
    /// Bytes a second that one rank can send, such as 25GB
    #[arg(long, value_name = "RATE", value_parser = quantity::bytes_a_second)]
    bandwidth: Option<f64>,
    /// Training rows, if the data is not on this machine
    #[arg(long, value_name = "N", value_parser = quantity::count)]
    rows: Option<usize>,
}

impl HardwareArguments {
    /// The hardware with `ranks` ranks if the user gave no number.
    pub fn hardware(&self, ranks: usize) -> Hardware {
        let Self { device_memory, flops, mfu, bandwidth, rows, .. } = *self;
        let ranks = self.ranks.unwrap_or(ranks);
        Hardware { ranks, device_memory, flops, bandwidth, mfu, rows }
    }
}
