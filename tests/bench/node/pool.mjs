// Uses of a generic-pool of 2 to 10, one after the other or many at once: how large it was.
import { setTimeout as sleep } from 'node:timers/promises';
import { createPool } from 'generic-pool';
import pMap from 'p-map';
import { plan } from './telling.mjs';

const { uses, concurrency, use_ms: useMs, make_ms: makeMs } = plan();
let made = 0;
const sizes = [];
const pool = createPool(
  {
    create: async () => { made += 1; await sleep(makeMs); return {}; },
    destroy: async () => {},
  },
  { min: 2, max: 10, acquireTimeoutMillis: 30000, idleTimeoutMillis: 30000 },
);
await pool.ready();
const began = performance.now();
await pMap(Array.from({ length: uses }), async () => {
  const held = await pool.acquire();
  sizes.push(pool.size);
  await sleep(useMs);
  await pool.release(held);
}, { concurrency });
const wallS = (performance.now() - began) / 1e3;
await pool.drain();
await pool.clear();
console.log(JSON.stringify({
  wall_s: wallS, made, largest: Math.max(...sizes),
  mean: sizes.reduce((sum, size) => sum + size, 0) / sizes.length,
}));
