//! Where the optimizer's moments and the sums of gradients are.

use candle_core::Device;
use serde::{Deserialize, Serialize};

/// Where the optimizer's state lies, and where its steps are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StatePlace {
    /// Beside the parameters.
    #[default]
    Device,
    /// In the computer's memory: gradients are summed there, and parameters go there and back, one at a time.
    Host,
    /// In shares: each of several processes holds one, in the computer's memory. In one process as [`StatePlace::Device`].
    Shared,
}

impl StatePlace {
    /// The device of the state of a parameter on `device`.
    pub(crate) fn of(self, device: &Device) -> &Device {
        match self {
            Self::Device | Self::Shared => device,
            Self::Host => &Device::Cpu,
        }
    }
}
