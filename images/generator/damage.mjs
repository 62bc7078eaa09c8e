/** The images of `damage/`: each breaks one rule of the format. */

import { headerDamage } from './damage-header.mjs';
import { mappingDamage } from './damage-mapping.mjs';
import { refcountDamage } from './damage-refcount.mjs';
import { tableDamage } from './damage-tables.mjs';

/** Every case of the group. */
export const damageCases = [...refcountDamage, ...mappingDamage, ...tableDamage, ...headerDamage];
