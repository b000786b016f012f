from sottovoce.adapters import Adapter as Adapter
from sottovoce.encoders import Encoder as Encoder
from sottovoce.errors import AudioError as AudioError
from sottovoce.errors import BundleError as BundleError
from sottovoce.errors import ConfigError as ConfigError
from sottovoce.errors import SottovoceError as SottovoceError
from sottovoce.frames import Frames as Frames
from sottovoce.serving.chat import Conversation as Conversation
from sottovoce.serving.model import Answer as Answer
from sottovoce.serving.model import Model as Model
from sottovoce.serving.model import load as load
from sottovoce.serving.questions import UntrainedTaskWarning as UntrainedTaskWarning

__version__: str
