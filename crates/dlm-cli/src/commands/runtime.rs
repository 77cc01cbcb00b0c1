//! Where and with how many threads to work, as the settings say.

use crate::{error::UsageError, settings::Settings};
use tch::{Cuda, Device};

/// Takes as many threads as the settings say, or one for each core, and gives the device.
pub(crate) fn start(settings: &Settings) -> Result<Device, UsageError> {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = settings.threads.map_or_else(cores, |threads| threads as usize);
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    // Only the first call in a process decides; a second one, as tests make, finds the pool at work.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    device(&settings.device)
}

fn device(name: &str) -> Result<Device, UsageError> {
    let index = match name {
        "auto" => return Ok(Device::cuda_if_available()),
        "cpu" => return Ok(Device::Cpu),
        name => name.strip_prefix("cuda:").and_then(|index| index.parse().ok()).unwrap_or(0),
    };
    if Cuda::is_available() && (index as i64) < Cuda::device_count() {
        return Ok(Device::Cuda(index));
    }
    Err(UsageError::Invalid {
        what: "`device`".to_owned(),
        found: format!("`{name}`"),
        expected: match Cuda::device_count() {
            count if count > 0 && Cuda::is_available() => format!("`auto`, `cpu` or one of {count} CUDA devices"),
            _ => "`auto` or `cpu`: this machine or this build has no CUDA device".to_owned(),
        },
    })
}
