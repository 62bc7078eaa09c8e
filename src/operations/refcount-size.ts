/** How much room refcounts need (specification: "Host cluster management"), by QEMU's reckoning. */

/** What the size of refcount structures depends on. */
export interface RefcountGeometry {
  /** Bytes. */
  clusterSize: number;
  /** Refcounts have 2^refcountOrder bits. */
  refcountOrder: number;
}

/** Refcount structures, in clusters. */
export interface RefcountClusters {
  blocks: number;
  table: number;
}

/** Refcounts in one refcount block. */
export function refcountsPerBlock({ clusterSize, refcountOrder }: RefcountGeometry): number {
  return (clusterSize * 8) / 2 ** refcountOrder;
}

/**
 * The refcount blocks and the refcount table that count `clusters` clusters and themselves.
 *
 * @param spare count half of the table as more clusters to come, so that it need not grow again soon
 */
export function refcountClusters(
  clusters: number,
  geometry: RefcountGeometry,
  { spare }: { spare: boolean },
): RefcountClusters {
  const perBlock = refcountsPerBlock(geometry);
  const perTableCluster = geometry.clusterSize / 8;
  const settle = (counted: number): RefcountClusters => {
    let blocks = 0;
    let table = 0;
    for (let before = -1; before !== blocks + table;) {
      before = blocks + table;
      blocks = Math.ceil((counted + table + blocks) / perBlock);
      table = Math.ceil(blocks / perTableCluster);
    }
    return { blocks, table };
  };
  const needed = settle(clusters);
  return spare ? settle(clusters + Math.ceil(needed.table / 2)) : needed;
}
