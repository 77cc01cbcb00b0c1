//! Steps that SQL does not have, as nodes of a DataFusion plan: chat, tokenize, pack.

use crate::{hold::Held, leaf::LeafExec};
use async_trait::async_trait;
use datafusion::{
    arrow::{array::RecordBatch, datatypes::SchemaRef},
    catalog::Session,
    common::{DFSchema, DFSchemaRef, tree_node::TreeNodeRecursion},
    error::{DataFusionError, Result},
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{
        Expr, LogicalPlan, UserDefinedLogicalNode, UserDefinedLogicalNodeCore,
        physical_planning_context::PhysicalPlanningContext,
    },
    physical_expr::{EquivalenceProperties, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, Partitioning, PlanProperties,
        execution_plan::{Boundedness, EmissionType},
        stream::RecordBatchReceiverStreamBuilder,
    },
    physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner},
};
use futures::StreamExt;
use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    pin::pin,
    sync::{Arc, OnceLock},
};

/// What a node of ours does with a stream of rows.
pub(crate) trait Stage: fmt::Debug + Send + Sync {
    /// Its name in a plan.
    fn name(&self) -> &'static str;

    /// Its options in a plan; two stages of one name with the same options do the same.
    fn options(&self) -> String;

    /// The columns that come out.
    fn schema(&self) -> SchemaRef;

    /// Where the plan of what is below is kept, when that has to be planned by itself.
    fn held(&self) -> Option<&OnceLock<Arc<dyn ExecutionPlan>>> {
        None
    }

    /// Does it. Rows come in order and leave in order.
    fn run(
        self: Arc<Self>,
        input: SendableRecordBatchStream,
        context: &Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream>;
}

/// A stage that works on each batch by itself.
pub(crate) trait BatchStage: fmt::Debug + Send + Sync + 'static {
    /// As [`Stage::name`].
    fn name(&self) -> &'static str;

    /// As [`Stage::options`].
    fn options(&self) -> String;

    /// As [`Stage::schema`].
    fn schema(&self) -> SchemaRef;

    /// How many batches it may work on at once.
    fn threads(&self) -> usize;

    /// What becomes of a batch.
    fn map(&self, batch: &RecordBatch) -> crate::Result<RecordBatch>;
}

impl<S: BatchStage> Stage for S {
    fn name(&self) -> &'static str {
        BatchStage::name(self)
    }

    fn options(&self) -> String {
        BatchStage::options(self)
    }

    fn schema(&self) -> SchemaRef {
        BatchStage::schema(self)
    }

    fn run(
        self: Arc<Self>,
        input: SendableRecordBatchStream,
        _: &Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let (schema, threads) = (BatchStage::schema(&*self), self.threads());
        Ok(map_in_order(input, schema, threads, move |batch| self.map(batch)))
    }
}

/// Maps batches on several threads, and gives them out in the order they came in.
///
/// A task of its own keeps the threads busy while the steps behind are at work; as many batches as threads may wait for those.
pub(crate) fn map_in_order(
    input: SendableRecordBatchStream,
    schema: SchemaRef,
    threads: usize,
    map: impl Fn(&RecordBatch) -> crate::Result<RecordBatch> + Clone + Send + Sync + 'static,
) -> SendableRecordBatchStream {
    let threads = threads.max(1);
    let mapped = input.map(move |batch| {
        let map = map.clone();
        async move {
            let batch = batch?;
            let task = tokio::task::spawn_blocking(move || map(&batch));
            match task.await {
                Ok(mapped) => mapped.map_err(DataFusionError::from),
                Err(failed) => Err(DataFusionError::ExecutionJoin(Box::new(failed))),
            }
        }
    });
    let mut receiver = RecordBatchReceiverStreamBuilder::new(schema, threads);
    let sender = receiver.tx();
    receiver.spawn(async move {
        let mut mapped = pin!(mapped.buffered(threads));
        while let Some(batch) = mapped.next().await {
            let is_last = batch.is_err();
            if sender.send(batch).await.is_err() || is_last {
                break; // nobody listens any more, or there is nothing more to say
            }
        }
        Ok(())
    });
    receiver.build()
}

/// A stage in a logical plan.
#[derive(Debug, Clone)]
pub(crate) struct StageNode {
    stage: Arc<dyn Stage>,
    input: LogicalPlan,
    schema: DFSchemaRef,
}

impl StageNode {
    /// The stage on top of `input`.
    pub(crate) fn new(stage: Arc<dyn Stage>, input: LogicalPlan) -> Result<Self> {
        let schema = Arc::new(DFSchema::try_from(stage.schema())?);
        Ok(Self { stage, input, schema })
    }

    fn key(&self) -> (&'static str, String) {
        (self.stage.name(), self.stage.options())
    }
}

impl PartialEq for StageNode {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key() && self.input == other.input
    }
}

impl Eq for StageNode {}

impl Hash for StageNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
        self.input.hash(state);
    }
}

impl PartialOrd for StageNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match self.key().cmp(&other.key()) {
            Ordering::Equal => self.input.partial_cmp(&other.input),
            different => Some(different),
        }
    }
}

impl UserDefinedLogicalNodeCore for StageNode {
    fn name(&self) -> &str {
        self.stage.name()
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        Vec::new()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {}", self.stage.name(), self.stage.options())
    }

    fn with_exprs_and_inputs(&self, _: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        let [input] = <[LogicalPlan; 1]>::try_from(inputs)
            .map_err(|inputs| DataFusionError::Internal(format!("a stage has one input, not {}", inputs.len())))?;
        Ok(Self { input, ..self.clone() })
    }
}

/// A stage in a physical plan.
#[derive(Debug)]
struct StageExec {
    stage: Arc<dyn Stage>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl StageExec {
    fn new(stage: Arc<dyn Stage>, input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = one_partition(stage.schema());
        Self { stage, input, properties }
    }
}

/// What every plan of ours is like: rows come one after the other, in one partition, and end.
pub(crate) fn one_partition(schema: SchemaRef) -> Arc<PlanProperties> {
    Arc::new(PlanProperties::new(
        EquivalenceProperties::new(schema),
        Partitioning::UnknownPartitioning(1),
        EmissionType::Incremental,
        Boundedness::Bounded,
    ))
}

impl DisplayAs for StageExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}Exec: {}", self.stage.name(), self.stage.options())
    }
}

impl ExecutionPlan for StageExec {
    fn name(&self) -> &'static str {
        "StageExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    /// Keeps the optimiser from dropping a sort below as without effect.
    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        vec![Distribution::SinglePartition]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = <[Arc<dyn ExecutionPlan>; 1]>::try_from(children)
            .map_err(|inputs| DataFusionError::Internal(format!("a stage has one input, not {}", inputs.len())))?;
        Ok(Arc::new(Self::new(Arc::clone(&self.stage), input)))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, Arc::clone(&context))?;
        Arc::clone(&self.stage).run(input, &context)
    }
}

/// Plans queries in which stages occur.
#[derive(Debug)]
pub(crate) struct StageQueryPlanner;

#[async_trait]
impl datafusion::execution::context::QueryPlanner for StageQueryPlanner {
    async fn create_physical_plan(&self, plan: &LogicalPlan, session: &dyn Session) -> Result<Arc<dyn ExecutionPlan>> {
        DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(StagePlanner)])
            .create_physical_plan(plan, session)
            .await
    }
}

struct StagePlanner;

#[async_trait]
impl ExtensionPlanner for StagePlanner {
    async fn plan_extension(
        &self,
        _planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        logical_inputs: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        _context: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let stage = node.as_any().downcast_ref::<StageNode>().map(|node| Arc::clone(&node.stage));
        if let Some(held) = stage.as_ref().and_then(|stage| stage.held())
            && let [input] = logical_inputs
        {
            // What is below a barrier is planned on the way to it as well: once is enough.
            let plan = match held.get() {
                Some(plan) => Arc::clone(plan),
                None => {
                    let plan = session.create_physical_plan(input).await?;
                    Arc::clone(held.get_or_init(|| plan))
                }
            };
            return Ok(Some(Arc::new(LeafExec::new(Held(plan)))));
        }
        let plan = stage.zip(physical_inputs.first()).map(|(stage, input)| StageExec::new(stage, Arc::clone(input)));
        Ok(plan.map(|plan| Arc::new(plan) as Arc<dyn ExecutionPlan>))
    }
}
