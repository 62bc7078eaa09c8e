/** Decompressed clusters, least recently used ones dropped. */

/** Sizes of a {@link ClusterCache}. */
export interface ClusterCacheOptions {
  clusterSize: number;
  /** Most bytes to keep; at least two clusters are. */
  budgetBytes: number;
}

/** A cache of decompressed clusters, by the host offset of their compressed bytes. */
export class ClusterCache {
  readonly #clusterSize: number;
  readonly #capacity: number;
  /** In order of use, the least recent first. */
  readonly #clusters = new Map<number, Uint8Array>();

  constructor({ clusterSize, budgetBytes }: ClusterCacheOptions) {
    this.#clusterSize = clusterSize;
    this.#capacity = Math.max(2, Math.floor(budgetBytes / clusterSize));
  }

  /** The cluster whose compressed bytes start at `hostOffset`, if it is there. */
  get(hostOffset: number): Uint8Array | undefined {
    const cluster = this.#clusters.get(hostOffset);
    if (cluster !== undefined) {
      this.#clusters.delete(hostOffset);
      this.#clusters.set(hostOffset, cluster);
    }
    return cluster;
  }

  /** Room for one cluster, taken from the least recent one where there is no more. */
  takeBuffer(): Uint8Array {
    if (this.#clusters.size < this.#capacity) return new Uint8Array(this.#clusterSize);
    const [hostOffset, cluster] = this.#clusters.entries().next().value!;
    this.#clusters.delete(hostOffset);
    return cluster;
  }

  /** Keeps `cluster`, which {@link takeBuffer} gave and which is now filled. */
  put(hostOffset: number, cluster: Uint8Array): void {
    this.#clusters.set(hostOffset, cluster);
  }

  /** Forgets all clusters. */
  clear(): void {
    this.#clusters.clear();
  }

  /** Forgets a cluster: its compressed bytes are about to be given up. */
  delete(hostOffset: number): void {
    this.#clusters.delete(hostOffset);
  }
}
