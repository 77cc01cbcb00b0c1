//! A barrier in a plan: what is below it is planned by itself, so that no sort is taken out or moved across it.
//!
//! DataFusion drops a sort when another one follows, and moves a sort below nodes that keep the order. Between two sorts there
//! can be a step to which the order matters: the first rows of a shuffled table are not those of the table.

use crate::{leaf::Leaf, stage::Stage};
use datafusion::{
    arrow::datatypes::SchemaRef,
    error::{DataFusionError, Result},
    execution::{SendableRecordBatchStream, TaskContext},
    physical_plan::{ExecutionPlan, ExecutionPlanProperties, displayable, stream::RecordBatchStreamAdapter},
};
use futures::{StreamExt, TryStreamExt, stream};
use std::{
    fmt,
    sync::{Arc, OnceLock},
};

/// The barrier in a logical plan.
#[derive(Debug)]
pub(crate) struct HoldStage {
    pub(crate) input: SchemaRef,
    pub(crate) held: OnceLock<Arc<dyn ExecutionPlan>>,
}

impl Stage for HoldStage {
    fn name(&self) -> &'static str {
        "Hold"
    }

    fn options(&self) -> String {
        "the order".to_owned()
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.input)
    }

    fn held(&self) -> Option<&OnceLock<Arc<dyn ExecutionPlan>>> {
        Some(&self.held)
    }

    fn run(
        self: Arc<Self>,
        input: SendableRecordBatchStream,
        _: &Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        Ok(input)
    }
}

/// The barrier in a physical plan: a finished plan that looks like a table. Its partitions are read one after the other, which
/// keeps the order of rows.
#[derive(Debug)]
pub(crate) struct Held(pub(crate) Arc<dyn ExecutionPlan>);

impl Leaf for Held {
    const NAME: &'static str = "HoldExec";

    fn schema(&self) -> SchemaRef {
        self.0.schema()
    }

    fn describe(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let held = displayable(self.0.as_ref()).indent(false).to_string();
        write!(f, "the order of\n{}", held.trim_end())
    }

    fn rows(&self, context: &Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        // All at once: a sort asks for its share of the memory here, and one that asked only when its first row comes would find
        // all of it with the sort below.
        let partitions = 0..self.0.output_partitioning().partition_count();
        let rows = partitions.map(|partition| self.0.execute(partition, Arc::clone(context)));
        let rows = stream::iter(rows.collect::<Result<Vec<_>>>()?).map(Ok::<_, DataFusionError>);
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows.try_flatten())))
    }
}
