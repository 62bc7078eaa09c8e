/** What a client is told when a request fails: an error of the protocol, and a few words. */

import { Qcow2Error } from '../../errors.ts';
import { NbdError } from './protocol.ts';

/** Why a request failed, as far as the client is concerned. */
export interface Failure {
  /** One of {@link NbdError}. */
  code: number;
  /** For people; sent where replies have room for it. Names nothing of this host. */
  text: string;
}

/** Failures of requests that cannot be right, whatever the device. */
export const Failures = {
  beyondEnd: { code: NbdError.NBD_EINVAL, text: 'beyond the end of the export' },
  noRoom: { code: NbdError.NBD_ENOSPC, text: 'beyond the end of the export' },
  badFlags: { code: NbdError.NBD_EINVAL, text: 'flags that this command does not take' },
  tooLong: { code: NbdError.NBD_EINVAL, text: 'more than the 32 MiB of a request' },
  unknownCommand: { code: NbdError.NBD_EINVAL, text: 'no such command' },
  badPayload: { code: NbdError.NBD_EINVAL, text: 'this command takes no such payload' },
  badFilter: {
    code: NbdError.NBD_EINVAL,
    text: 'the payload does not name contexts that were agreed on, each once',
  },
  badResize: { code: NbdError.NBD_EINVAL, text: 'a size is a multiple of 512, and has no length' },
  badSize: { code: NbdError.NBD_EINVAL, text: 'the disk cannot have that size' },
  badFlush: { code: NbdError.NBD_EINVAL, text: 'a flush has neither offset nor length' },
  noContexts: { code: NbdError.NBD_EINVAL, text: 'no metadata context was negotiated' },
  nothing: { code: NbdError.NBD_EINVAL, text: 'a length of 0' },
  readOnly: { code: NbdError.NBD_EPERM, text: 'the export can only be read' },
  notFast: { code: NbdError.NBD_ENOTSUP, text: 'zeroing is not known to be fast here' },
  noMemory: {
    code: NbdError.NBD_EOVERFLOW,
    text: 'no memory to read so much at once: leave out NBD_CMD_FLAG_DF',
  },
} as const satisfies Record<string, Failure>;

/** Errors of the host that the protocol has numbers for. */
const HOST_ERRORS: Readonly<Record<string, Failure>> = {
  ENOSPC: { code: NbdError.NBD_ENOSPC, text: 'no space left on the host' },
  EDQUOT: { code: NbdError.NBD_ENOSPC, text: 'the disk quota of the host is used up' },
  EFBIG: { code: NbdError.NBD_ENOSPC, text: 'the file of the host cannot grow further' },
  ENOMEM: { code: NbdError.NBD_ENOMEM, text: 'the host is out of memory' },
};

const IO_ERROR: Failure = { code: NbdError.NBD_EIO, text: 'input/output error' };

/** What a client is told of an error of a device. */
export function failureOf(error: unknown): Failure {
  if (!(error instanceof Qcow2Error)) return IO_ERROR;
  switch (error.code) {
    case 'READ_ONLY':
      return Failures.readOnly;
    case 'OUT_OF_RANGE':
    case 'TOO_LARGE':
      return Failures.noRoom;
    case 'CORRUPT':
    case 'TRUNCATED':
      return { code: NbdError.NBD_EIO, text: 'the image is damaged' };
    case 'HOST': {
      const { code = '' } = (error.cause ?? {}) as NodeJS.ErrnoException;
      return HOST_ERRORS[code] ?? IO_ERROR;
    }
    default:
      return IO_ERROR;
  }
}
