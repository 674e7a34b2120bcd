//! Who a process is to the broker: credentials, permissions and the prefix of its replies follow from it.

use std::fmt;

use protocol::error::StageName;

/// Role of a process on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Works on messages.
    Stage(StageName),
    /// Asks, cancels and looks (`vidi ask`, `cancel`, `status`).
    Client,
    /// Copies uploaded files to the object store (`vidi gateway`, `vidi up --http`).
    Gateway,
    /// Runs the pipeline (`vidi up`, `record`, `replay`, `bench`).
    Operator,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 8] = [
        Role::Stage(StageName::Decode),
        Role::Stage(StageName::Vision),
        Role::Stage(StageName::Audio),
        Role::Stage(StageName::Fuse),
        Role::Stage(StageName::Llm),
        Role::Client,
        Role::Gateway,
        Role::Operator,
    ];

    /// Name of the role, as `{stage}` in the configuration of the bus stands for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Stage(stage) => stage.as_str(),
            Role::Client => "client",
            Role::Gateway => "gateway",
            Role::Operator => "operator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
