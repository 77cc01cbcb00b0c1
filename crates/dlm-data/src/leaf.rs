//! The beginning of a plan: rows that come from elsewhere, in one partition and in their order.

use crate::stage::one_partition;
use datafusion::{
    arrow::datatypes::SchemaRef,
    common::tree_node::TreeNodeRecursion,
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::PhysicalExpr,
    physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties},
};
use std::{fmt, sync::Arc};

/// Where the rows come from.
pub(crate) trait Leaf: fmt::Debug + Send + Sync + 'static {
    /// Its name in a plan.
    const NAME: &'static str;

    /// The columns.
    fn schema(&self) -> SchemaRef;

    /// What stands behind its name in a plan.
    fn describe(&self, f: &mut fmt::Formatter) -> fmt::Result;

    /// The rows.
    fn rows(&self, context: &Arc<TaskContext>) -> Result<SendableRecordBatchStream>;
}

/// A leaf in a physical plan.
#[derive(Debug)]
pub(crate) struct LeafExec<L> {
    leaf: L,
    properties: Arc<PlanProperties>,
}

impl<L: Leaf> LeafExec<L> {
    pub(crate) fn new(leaf: L) -> Self {
        let properties = one_partition(leaf.schema());
        Self { leaf, properties }
    }
}

impl<L: Leaf> DisplayAs for LeafExec<L> {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: ", L::NAME)?;
        self.leaf.describe(f)
    }
}

impl<L: Leaf> ExecutionPlan for LeafExec<L> {
    fn name(&self) -> &'static str {
        L::NAME
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
        self.leaf.rows(&context)
    }
}
