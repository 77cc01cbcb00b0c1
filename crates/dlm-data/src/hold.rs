//! A barrier in a plan: what is below it is planned by itself, so that no sort is taken out or moved across it.
//!
//! DataFusion drops a sort when another one follows, and moves a sort below nodes that keep the order. Between two sorts there
//! can be a step to which the order matters: the first rows of a shuffled table are not those of the table.

use crate::stage::Stage;
use datafusion::{
    arrow::datatypes::SchemaRef,
    common::tree_node::TreeNodeRecursion,
    error::{DataFusionError, Result},
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{EquivalenceProperties, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
        displayable,
        execution_plan::{Boundedness, EmissionType},
        stream::RecordBatchStreamAdapter,
    },
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
pub(crate) struct HoldExec {
    held: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl HoldExec {
    pub(crate) fn new(held: Arc<dyn ExecutionPlan>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(held.schema()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { held, properties: Arc::new(properties) }
    }
}

impl DisplayAs for HoldExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let held = displayable(self.held.as_ref()).indent(false).to_string();
        write!(f, "HoldExec: the order of\n{}", held.trim_end())
    }
}

impl ExecutionPlan for HoldExec {
    fn name(&self) -> &'static str {
        "HoldExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        // All at once: a sort asks for its share of the memory here, and one that asked only when its first row comes would find
        // all of it with the sort below.
        let partitions = 0..self.held.output_partitioning().partition_count();
        let rows = partitions.map(|partition| self.held.execute(partition, Arc::clone(&context)));
        let rows = stream::iter(rows.collect::<Result<Vec<_>>>()?).map(Ok::<_, DataFusionError>);
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows.try_flatten())))
    }
}
